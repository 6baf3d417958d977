"""Turns a folder of labelled pictures, or a torchvision dataset on disk, into a checked and split Dataset."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from edgeopt.config import DataConfig
from edgeopt.console import Progress
from edgeopt.data import folder_source, torchvision_source
from edgeopt.data.dataset import SPLITS, Dataset, Item, Split
from edgeopt.data.folder_source import Found, Listing
from edgeopt.data.split import carve
from edgeopt.data.threads import in_threads
from edgeopt.errors import ConfigError, DataError
from edgeopt.files import printable, sha256
from edgeopt.picture_files import decoded
from edgeopt.preprocess import strips, to_rgb

__all__ = ["Dataset", "Item", "ingest"]

#: Larger JPEGs are decoded at a reduced scale of at least this many pixels a side, enough to check and compare them.
_CHECKED_SIDE = 1024


@dataclass(frozen=True, slots=True)
class _Checked:
    """A picture that can be read. ``pixels`` names its content: equal pixels are the same picture."""

    found: Found
    sha256: str
    pixels: str


def ingest(config: DataConfig, *, progress: Progress | None = None) -> Dataset:
    """Read, check and split the pictures at ``config.path``.

    Every picture is decoded: what cannot be read is set aside by name with the reason. Without ready-made splits each
    class is divided by ``config.seed`` into train and ``config.val`` and ``config.test`` of its pictures; ready-made
    ones are kept and missing ones carved from train. Pictures with equal pixels stay in one split (in ready-made
    splits the copies in train, then val, are set aside), and are set aside when they have two labels. The result
    depends on file contents and relative names only. ``progress(done, total)`` counts pictures. Raises DataError.
    """
    if config.val + config.test >= 0.95:
        raise ConfigError(
            f"data.val = {config.val} and data.test = {config.test} leave too little to train on",
            fix="lower them: together they must stay under 0.95",
        )
    if torchvision_source.is_reference(config.path):
        root = torchvision_source.normalized(config.path)
        listing, checked, broken = _from_torchvision(root, progress)
    else:
        # Unlike Path's own, these stand links that lead in circles and homes that are not there.
        root = os.path.realpath(os.path.expanduser(config.path))  # noqa: PTH111
        listing = folder_source.scan(Path(root))
        checked, broken = _check_files(Path(root), listing.found, config.max_pixels, progress)
    kept, twice = _without_conflicts(checked)
    if listing.ready_made:
        kept, straddling = _without_straddling(kept)
        twice += straddling
    set_aside = tuple(sorted((*listing.set_aside, *broken, *twice)))
    classes = tuple(sorted({name for name in listing.classes}))
    try:
        items = _split(kept, classes, listing.ready_made, config)
    except DataError as error:
        raise _with_reasons(error, set_aside) from None
    return Dataset(root, classes, items, set_aside, listing.ignored, listing.notes)


def _check_files(
    root: Path, found: Sequence[Found], max_pixels: int, progress: Progress | None
) -> tuple[list[_Checked], list[tuple[str, str]]]:
    def check(item: Found) -> _Checked | str:
        path = root / item.path
        try:
            with decoded(path, max_pixels=max_pixels, draft=(_CHECKED_SIDE, _CHECKED_SIDE)) as image:
                pixels = _pixel_hash(image)
            return _Checked(item, sha256(path), pixels)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        except DataError as error:
            return error.message.removeprefix(f"{printable(str(path))}: ")

    return _collect(found, check, progress)


def _from_torchvision(
    reference: str, progress: Progress | None
) -> tuple[Listing, list[_Checked], list[tuple[str, str]]]:
    parts = torchvision_source.parts(reference)
    names = torchvision_source.class_names(parts.get("train") or parts["all"])
    samples = [(part, index) for part, samples in parts.items() for index in range(len(samples))]

    def check(sample: tuple[str, int]) -> _Checked | str:
        part, index = sample
        path = f"{part}/{index:06d}"
        try:
            image, label = torchvision_source.read(parts[part], index, path)
        except DataError as error:
            if error.fix is not None:  # the dataset is of another kind: no picture of it will do
                raise
            return error.message.removeprefix(f"{path}: ")
        name = names[label] if names is not None and 0 <= label < len(names) else f"{label:04d}"
        digest = _pixel_hash(image)
        split: Split | None = None if part == "all" else next(split for split in SPLITS if split == part)
        return _Checked(Found(path, name, split), digest, digest)

    checked, broken = _collect(samples, check, progress, name=lambda sample: f"{sample[0]}/{sample[1]:06d}")
    listing = Listing(
        found=tuple(item.found for item in checked),
        classes=tuple(sorted({item.found.label for item in checked})),
        ready_made=tuple(split for split in SPLITS if split in parts),
    )
    return listing, checked, broken


def _collect(
    sources: Sequence[Any],
    check: Callable[[Any], _Checked | str],
    progress: Progress | None,
    *,
    name: Callable[[Any], str] = lambda found: str(found.path),
) -> tuple[list[_Checked], list[tuple[str, str]]]:
    """``check`` over all sources, in threads (decoding and hashing release the GIL); reasons where it gave one."""
    checked: list[_Checked] = []
    broken: list[tuple[str, str]] = []
    for done, (source, result) in enumerate(zip(sources, in_threads(check, sources), strict=True), start=1):
        if isinstance(result, str):
            broken.append((name(source), result))
        else:
            checked.append(result)
        if progress is not None:
            progress(done, len(sources))
    return checked, broken


def _pixel_hash(image: Image.Image) -> str:
    rgb = to_rgb(image)
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    for box in strips(rgb):
        digest.update(rgb.crop(box).tobytes())
    return digest.hexdigest()


def _without_conflicts(checked: Iterable[_Checked]) -> tuple[list[_Checked], list[tuple[str, str]]]:
    """Pictures whose content has one label, and why the others were set aside."""
    by_pixels: dict[str, list[_Checked]] = defaultdict(list)
    for item in checked:
        by_pixels[item.pixels].append(item)
    kept: list[_Checked] = []
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


def _without_straddling(checked: Iterable[_Checked]) -> tuple[list[_Checked], list[tuple[str, str]]]:
    """For ready-made splits: a picture that is in test may not be trained on, nor one in val."""
    order = {"test": 0, "val": 1, "train": 2, None: 3}
    home: dict[str, _Checked] = {}
    kept: list[_Checked] = []
    aside: list[tuple[str, str]] = []
    for item in sorted(checked, key=lambda item: (order[item.found.split], item.found.path)):
        first = home.setdefault(item.pixels, item)
        if first.found.split == item.found.split:
            kept.append(item)
        else:
            aside.append((item.found.path, f"the same picture is in {first.found.split}: {first.found.path}"))
    return kept, aside


def _split(
    checked: Sequence[_Checked], classes: Sequence[str], ready_made: Sequence[Split], config: DataConfig
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
            groups[item.found.label][item.pixels] += 1
    assigned = carve(groups, carved, config.seed)
    labels = {name: index for index, name in enumerate(classes)}
    items = [
        Item(
            path=item.found.path,
            label=labels[item.found.label],
            sha256=item.sha256,
            split=assigned[item.found.label, item.pixels] if item.found.split in (None, "train") else item.found.split,
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
