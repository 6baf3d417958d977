"""``edgeopt check``: what is wrong with a set of pictures, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from edgeopt.config import DataConfig
from edgeopt.console import Console, Silent
from edgeopt.data.checks import duplicates
from edgeopt.data.checks.issues import KINDS, Issue, NotRun, missing, of
from edgeopt.data.checks.look import make_look
from edgeopt.data.checks.page import render
from edgeopt.data.checks.result import CheckResult
from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.examine import Examined, examine
from edgeopt.data.folder_source import Found
from edgeopt.data.manifest_source import is_manifest
from edgeopt.data.torchvision_source import is_reference
from edgeopt.errors import ConfigError, DataError, ModelError
from edgeopt.files import make_folder, write_json, write_text
from edgeopt.run import stage_key

#: A class that has this many times fewer pictures than the largest is said to be small.
_IMBALANCED = 10.0
_VERSION = 1  # what is looked for, and how: raised when the same pictures would be found otherwise


def check(
    data: DataConfig | str | Path,
    *,
    model: str = "tf_efficientnet_lite0",
    labels: bool = True,
    out: Path | None = None,
    exclude: Path | None = None,
    again: bool = True,
    console: Console | None = None,
) -> CheckResult:
    """Look for damaged, doubled, leaked, probably mislabelled, dark, bright, blurry, empty and odd pictures.

    Writes ``check.html`` and ``issues.json`` into ``out`` (default: ``runs/checks/<name of the data>``), and the list
    of pictures one would leave out into ``exclude``; nothing is deleted or moved. ``model`` is the pretrained backbone
    that labels are checked with, unless ``labels`` is False. A check whose packages or weights are not at hand is
    named in ``not_run`` with what to install. Unless ``again``, what was found earlier in the same pictures, all of it
    looked for, is what ``out`` holds. Raises DataError, ModelError for an unknown model, ConfigError.
    """
    console = console or Silent()
    data = data if isinstance(data, DataConfig) else DataConfig(path=str(data))
    if exclude is not None and exclude.exists():
        raise ConfigError(f"{exclude} exists already", fix="give another name, or remove it when you no longer need it")
    if labels and missing("labels", "torch", "timm") is None:
        from edgeopt.models.builders import require_known, split_name

        require_known(*split_name(model))
    not_run = [item for item in (missing("pictures' quality", "cleanvision"),) if item is not None]
    with console.task("reading pictures") as progress:
        examined = examine(data, look=make_look(measure=not not_run), progress=progress)
    folder = make_folder(out or Path("runs") / "checks" / _name(data.path))
    key = _key(examined, data, model=model, labels=labels)
    if not again and (earlier := CheckResult.read(folder, key)) is not None:
        return earlier.also(exclude)
    issues = _unusable(examined)
    with console.task("comparing pictures"):
        alike, groups = duplicates.find(examined.checked)
    issues += alike
    if not not_run:
        from edgeopt.data.checks import quality

        issues += quality.find(examined.checked)
    counts = Counter(item.found.label for item in examined.checked)
    notes = [*examined.listing.notes, *_imbalance(counts)]
    ranking: list[tuple[str, float]] = []
    if labels:
        found, ranking, said = _labels(examined, data, groups, model, console)
        issues += found
        for item in said:
            notes += [item] if isinstance(item, str) else []
            not_run += [item] if isinstance(item, NotRun) else []
    order = list(KINDS)
    result = CheckResult(
        key=key,
        data=examined.root,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        pictures=len(examined.checked),
        classes=dict(sorted(counts.items())),
        issues=tuple(sorted(issues, key=lambda issue: (order.index(issue.kind), -issue.score, issue.path))),
        notes=tuple(notes),
        not_run=tuple(not_run),
        label_quality=tuple(ranking),
        folder=folder,
    )
    with console.task("writing the page"):
        write_text(result.html, render(result, _dataset(examined), data.max_pixels))
    write_json(result.json, result.to_json())
    return result.also(exclude)


def _key(examined: Examined, data: DataConfig, *, model: str, labels: bool) -> str:
    """What the findings follow from: the pictures, where they are and what they are labelled, and the settings."""
    lines = [repr((item.found.path, item.found.label, item.found.split, item.sha256)) for item in examined.checked]
    lines += [repr(item) for item in sorted((*examined.broken, *examined.listing.set_aside))]
    pictures = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
    config = {"root": examined.root, "max_pixels": data.max_pixels, "model": model if labels else None}
    return stage_key(inputs={"pictures": pictures}, config=config, version=_VERSION)


def _unusable(examined: Examined) -> list[Issue]:
    label_of = {found.path: found for found in examined.listing.found}
    return [
        of(label_of.get(path) or Found(path, "", None), "unreadable", 1.0, reason)
        for path, reason in sorted((*examined.broken, *examined.listing.set_aside))
    ]


def _imbalance(counts: Counter[str]) -> list[str]:
    if not counts:
        return []
    (largest, most), notes = counts.most_common(1)[0], []
    small = sorted((count, name) for name, count in counts.items() if count * _IMBALANCED <= most)
    if small:
        named = ", ".join(f'"{name}" ({count})' for count, name in small[:20])
        notes.append(
            f'imbalance: "{largest}" has {most} pictures, {most / small[0][0]:.0f} times the smallest class; '
            f"a tenth of that or less: {named}"
        )
    return notes


def _labels(
    examined: Examined, data: DataConfig, groups: Sequence[Sequence[str]], model: str, console: Console
) -> tuple[list[Issue], list[tuple[str, float]], list[str | NotRun]]:
    """The issues, the ranking, and what there is to say besides."""
    absent = missing("labels", "torch", "timm", "sklearn", "cleanlab")
    if absent is not None:
        return [], [], [absent]
    from edgeopt.data.checks import labels

    group_of = {path: group[0] for group in groups for path in group}
    dataset = _dataset(examined)
    try:
        with console.task("looking at pictures with a pretrained model") as progress:
            values = labels.features(dataset, dataset.items, model, max_pixels=data.max_pixels, progress=progress)
    except ModelError as error:
        return [], [], [NotRun("labels", error.message, error.fix or "")]
    with console.task("checking labels"):
        keys = [group_of.get(item.found.path, item.found.path) for item in examined.checked]
        issues, ranking, small = labels.find(examined.checked, values, keys)
    said: list[str | NotRun] = []
    if small:
        said.append(f"labels of classes with fewer than two different pictures were not checked: {', '.join(small)}")
    return issues, ranking, said


def _dataset(examined: Examined) -> Dataset:
    """The pictures as a dataset that opens them; nothing is split here."""
    if not examined.checked:
        raise DataError(
            f"no picture under {examined.root} can be read", fix="see that they are JPEG, PNG or the like, and whole"
        )
    names = sorted({item.found.label for item in examined.checked})
    index = {name: number for number, name in enumerate(names)}
    items = tuple(
        Item(item.found.path, index[item.found.label], item.sha256, item.found.split or "train")
        for item in examined.checked
    )
    return Dataset(examined.root, tuple(names), items)


def _name(source: str) -> str:
    if is_reference(source):
        return source.split("@")[0].split(":", 1)[1]
    path = Path(source).absolute()
    return (path.stem if is_manifest(path) else path.name) or "pictures"
