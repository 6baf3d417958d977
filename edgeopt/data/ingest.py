"""Turns a folder of labelled pictures, a manifest or a torchvision dataset on disk into a checked, split Dataset."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from edgeopt.config import DataConfig
from edgeopt.console import Progress
from edgeopt.data import near
from edgeopt.data.dataset import SPLITS, Dataset, Item, Split
from edgeopt.data.examine import Checked, examine
from edgeopt.data.split import carve
from edgeopt.errors import ConfigError, DataError
from edgeopt.files import printable

__all__ = ["Dataset", "Item", "ingest"]

#: A group of near duplicates may hold this share of a class, or two pictures: larger ones are no accident.
_LARGEST_GROUP = 0.05


def ingest(config: DataConfig, *, progress: Progress | None = None) -> Dataset:
    """Read, check and split the pictures at ``config.path``.

    Every picture is decoded: what cannot be read is set aside by name with the reason, and so is what
    ``config.exclude`` lists. Without ready-made splits each class is divided by ``config.seed`` into train and
    ``config.val`` and ``config.test`` of its pictures; ready-made ones are kept and missing ones carved from train.
    Pictures with equal pixels, of one group of a manifest, or with ``config.group_near`` nearly the same, stay in one
    split (in ready-made splits the copies in train, then val, are set aside); equal ones with two labels are set aside.
    The result depends on file contents and relative names only. ``progress(done, total)`` counts pictures. Raises
    DataError, and ConfigError for a manifest's bad rows.
    """
    if config.val + config.test >= 0.95:
        raise ConfigError(
            f"data.val = {config.val} and data.test = {config.test} leave too little to train on",
            fix="lower them: together they must stay under 0.95",
        )
    examined = examine(config, look=near.thumbnail if config.group_near else None, progress=progress)
    listing = examined.listing
    kept, twice = _without_conflicts(examined.checked)
    belongs = _belonging(kept, near_too=config.group_near)
    if listing.ready_made:
        kept, straddling = _without_straddling(kept, belongs)
        twice += straddling
    set_aside = tuple(sorted((*listing.set_aside, *examined.broken, *twice)))
    classes = tuple(sorted({name for name in listing.classes}))
    try:
        items = _split(kept, classes, listing.ready_made, config, belongs)
    except DataError as error:
        raise _with_reasons(error, set_aside) from None
    return Dataset(examined.root, classes, items, set_aside, listing.ignored, listing.notes)


def _belonging(kept: Sequence[Checked], *, near_too: bool) -> dict[str, str]:
    """The key of what each picture belongs to, by its pixels: its own, or one for all that may not be divided."""
    together: list[list[str]] = []
    groups: dict[str, list[str]] = defaultdict(list)
    for item in kept:
        if item.found.group is not None:
            groups[item.found.group].append(item.pixels)
    together += groups.values()
    if near_too:
        together += _near_groups(kept)
    keys = {item.pixels: item.pixels for item in kept}

    def root(key: str) -> str:
        while keys[key] != key:
            keys[key] = keys[keys[key]]
            key = keys[key]
        return key

    for members in together:
        for other in members[1:]:
            first, second = sorted((root(members[0]), root(other)))
            keys[second] = first
    return {key: root(key) for key in keys}


def _near_groups(kept: Sequence[Checked]) -> list[list[str]]:
    """Groups of near duplicates by their pixels; raises DataError for one that is a considerable part of a class."""
    distinct = {item.pixels: item for item in kept}
    items = list(distinct.values())
    sizes = Counter(item.found.label for item in items)
    groups = near.complete_link(near.near_pairs([item.seen for item in items]))
    for group in groups:
        label, count = Counter(items[index].found.label for index in group).most_common(1)[0]
        if count > max(2, _LARGEST_GROUP * sizes[label]):
            raise DataError(
                f'{count} of the {sizes[label]} different pictures of "{printable(label)}" are near duplicates of each '
                f"other, such as {printable(items[group[0]].found.path)}: more than 5 %",
                fix="leave some of them out, as `edgeopt check DATA --exclude FILE` lists them, or drop --group-near",
            )
    return [[items[index].pixels for index in group] for group in groups]


def _without_conflicts(checked: Iterable[Checked]) -> tuple[list[Checked], list[tuple[str, str]]]:
    """Pictures whose content has one label, and why the others were set aside."""
    by_pixels: dict[str, list[Checked]] = defaultdict(list)
    for item in checked:
        by_pixels[item.pixels].append(item)
    kept: list[Checked] = []
    aside: list[tuple[str, str]] = []
    for same in by_pixels.values():
        firsts: dict[str, str] = {}
        for item in same:
            firsts.setdefault(item.found.label, item.found.path)
        if len(firsts) == 1:
            kept += same
            continue
        for item in same:
            other = next(path for label, path in firsts.items() if label != item.found.label)
            aside.append((item.found.path, f"the same picture has another label: {other}"))
    return kept, aside


def _without_straddling(
    checked: Iterable[Checked], belongs: Mapping[str, str]
) -> tuple[list[Checked], list[tuple[str, str]]]:
    """For ready-made splits: a picture that is in test may not be trained on, nor one in val."""
    order = {"test": 0, "val": 1, "train": 2, None: 3}
    home: dict[str, Checked] = {}
    kept: list[Checked] = []
    aside: list[tuple[str, str]] = []
    for item in sorted(checked, key=lambda item: (order[item.found.split], item.found.path)):
        first = home.setdefault(belongs[item.pixels], item)
        if first.found.split == item.found.split:
            kept.append(item)
        else:
            same = "the same picture" if first.pixels == item.pixels else "nearly the same picture"
            aside.append((item.found.path, f"{same} is in {first.found.split}: {first.found.path}"))
    return kept, aside


def _split(
    checked: Sequence[Checked],
    classes: Sequence[str],
    ready_made: Sequence[Split],
    config: DataConfig,
    belongs: Mapping[str, str],
) -> tuple[Item, ...]:
    if len(classes) < 2:
        raise DataError(
            f"found {len(classes)} class{'es' if not classes else ''} of pictures; a classifier needs at least two",
            fix="put the pictures into one folder for each class",
        )
    wanted: dict[Split, float] = {"test": config.test, "val": config.val}
    carved = {split: share for split, share in wanted.items() if split not in ready_made}
    groups: dict[str, Counter[str]] = {name: Counter() for name in classes}
    for item in checked:
        if item.found.split in (None, "train"):
            groups[item.found.label][belongs[item.pixels]] += 1
    assigned = carve(groups, carved, config.seed)
    labels = {name: index for index, name in enumerate(classes)}
    sizes = Counter(belongs[item.pixels] for item in checked)
    items = [
        Item(
            path=item.found.path,
            label=labels[item.found.label],
            sha256=item.sha256,
            split=(
                assigned[item.found.label, belongs[item.pixels]]
                if item.found.split in (None, "train")
                else item.found.split
            ),
            weight=item.found.weight,
            group=belongs[item.pixels] if sizes[belongs[item.pixels]] > 1 else "",
        )
        for item in checked
    ]
    for split in SPLITS:
        if not any(item.split == split for item in items):
            raise DataError(f"no readable picture is left in {split}", fix=f"add pictures to {split}")
    return tuple(sorted(items, key=lambda item: item.path))


def _with_reasons(error: DataError, set_aside: Sequence[tuple[str, str]]) -> DataError:
    """The error with the first pictures set aside: they are often why a class is too small."""
    if not set_aside:
        return error
    named = "\n".join(f"  - {printable(path)}: {printable(reason)}" for path, reason in set_aside[:10])
    more = f"\n  and {len(set_aside) - 10} more" if len(set_aside) > 10 else ""
    return DataError(f"{error.message}\nset aside ({len(set_aside)}):\n{named}{more}", fix=error.fix)
