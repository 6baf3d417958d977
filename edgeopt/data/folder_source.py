"""Lists the pictures of a class folder or of ready-made train/val/test folders, without opening them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeopt.data.dataset import Split
from edgeopt.errors import DataError
from edgeopt.files import printable
from edgeopt.picture_files import Contents, as_utf8, contents, why_no_file

#: What people call the splits.
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A file that should be a picture: POSIX path relative to the root, class name, ready-made split or None.

    ``group`` and ``weight`` come from a manifest: pictures of a group belong together.
    """

    path: str
    label: str
    split: Split | None
    group: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Listing:
    """What a source holds; ``ready_made`` are the splits it comes with."""

    found: tuple[Found, ...]
    classes: tuple[str, ...]
    ready_made: tuple[Split, ...] = ()
    set_aside: tuple[tuple[str, str], ...] = ()
    ignored: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()


def scan(root: Path) -> Listing:
    """The pictures under ``root``, in an order that does not depend on the file system; raises DataError."""
    _check_root(root)
    splits = _split_folders(root)
    scanner = _Scanner(root)
    for folder in _folders(root):
        if not splits:
            scanner.add_class(folder, None)
        elif folder in splits:
            for inner in _folders(folder):
                scanner.add_class(inner, splits[folder])
            scanner.add_strays(folder)
        else:
            scanner.put_aside(folder, "beside the train folder, but not a split")
    scanner.add_strays(root)
    found = tuple(sorted(scanner.found, key=lambda item: item.path))
    if not found:
        raise DataError(
            f"found no pictures in folders of classes under {root}{_what_instead(scanner)}",
            fix=f"expected {root.name}/CLASS/picture.jpg, or {root.name}/train/CLASS/picture.jpg",
        )
    classes = tuple(sorted({item.label for item in found}))
    ready_made = tuple(sorted(set(splits.values()))) if splits else ()
    if ready_made:
        trained = {item.label for item in found if item.split == "train"}
        unknown = sorted(set(classes) - trained)
        if unknown:
            raise DataError(
                f"train has no pictures of classes that val or test have: {', '.join(unknown[:20])}",
                fix="add them to train, or remove their folders",
            )
    ignored = tuple(sorted((+scanner.ignored).items()))
    return Listing(found, classes, ready_made, tuple(scanner.set_aside), ignored, tuple(alike(classes)))


def _check_root(root: Path) -> None:
    fix = "give the folder that holds one folder of pictures for each class"
    if not os.path.isdir(root):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be read
        what = "is not a folder" if os.path.lexists(root) else "does not exist"
        raise DataError(f"{printable(str(root))} {what}", fix=fix)
    try:
        os.scandir(root).close()
    except OSError as error:
        raise DataError(f"{printable(str(root))} cannot be read ({error.strerror})", fix=fix) from None
    if as_utf8(str(root)) != str(root):
        raise DataError(
            f"the path {as_utf8(str(root))} is not valid UTF-8, so that no record can name it", fix="rename the folder"
        )


def alike(classes: Iterable[str]) -> Iterator[str]:
    """A line for each group of classes whose names a reader would take for one."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[unicodedata.normalize("NFC", name).casefold()].append(name)
    for names in groups.values():
        if len(names) > 1:
            listed = ", ".join(f'"{name}"' for name in names)
            yield f"classes whose names differ in case or spelling only: {listed}; merge the folders if they are one"


def _split_folders(root: Path) -> dict[Path, Split]:
    """The ready-made split folders of ``root``; empty when its folders are classes (one may be called train)."""
    folders = _folders(root)
    splits = {folder: SPLIT_NAMES[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_NAMES}
    kinds = list(splits.values())
    others = len(folders) - len(splits)
    if "train" not in kinds or (len(set(kinds)) == 1 and others) or not any(_folders(folder) for folder in splits):
        return {}
    doubled = sorted(folder.name for folder, split in splits.items() if kinds.count(split) > 1)
    if doubled:
        raise DataError(
            f"{root} has two folders for one split: {', '.join(doubled)}", fix="merge or rename one of them"
        )
    return splits


def _folders(parent: Path) -> list[Path]:
    return [Path(folder) for folder in contents(str(parent), nested=False).folders]


class _Scanner:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.inside = os.path.realpath(root)
        self.found: list[Found] = []
        self.set_aside: list[tuple[str, str]] = []
        self.ignored: Counter[str] = Counter()

    def add_class(self, folder: Path, split: Split | None) -> None:
        """Every picture at any depth of ``folder``, whose name is the class."""
        before = len(self.found) + len(self.set_aside)
        if not has_plain_name(folder.name):
            self.put_aside(folder, "its name cannot be written in labels.txt")
            return
        found = self._contents(folder, nested=True)
        self.ignored["not a picture"] += len(found.others)
        for path in found.files:
            self._add_file(path, folder.name, split)
        if len(self.found) + len(self.set_aside) == before:
            self.put_aside(folder, "a folder without pictures")

    def add_strays(self, folder: Path) -> None:
        """What is beside the class folders belongs to no class."""
        found = self._contents(folder, nested=False)
        for path in found.files:
            self.put_aside(path, "in no class folder")
        for path in found.others:
            if os.path.splitext(path)[1]:  # noqa: PTH122 - notes, archives, tables
                self.ignored["not a picture"] += 1
            else:
                self.put_aside(path, why_no_file(path) or "a file where a folder of pictures is expected")

    def _contents(self, folder: Path, *, nested: bool) -> Contents:
        found = contents(str(folder), nested=nested)
        self.ignored["hidden"] += found.hidden
        for path, reason in found.problems:
            self.put_aside(path, reason)
        return found

    def _add_file(self, path: str, label: str, split: Split | None) -> None:
        relative = self._relative(path)
        if as_utf8(relative) != relative or "\\" in relative:
            self.put_aside(path, "its name is not valid UTF-8 or holds a backslash")
        elif os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(self.inside):  # noqa: PTH114
            self.put_aside(path, "a link that leads out of the dataset")
        else:
            self.found.append(Found(relative, label, split))

    def put_aside(self, path: str | Path, reason: str) -> None:
        """Say why ``path`` is not used."""
        self.set_aside.append((as_utf8(self._relative(path)), reason))

    def _relative(self, path: str | Path) -> str:
        return str(path).removeprefix(os.path.join(self.root, ""))  # noqa: PTH118 - a Path each would take a second


def has_plain_name(name: str) -> bool:
    """Whether a class may be called ``name``: labels.txt holds one a line."""
    return as_utf8(name) == name and name.isprintable() and name == name.strip()


def _what_instead(scanner: _Scanner) -> str:
    counts = [f"{count} {kind}" for kind, count in sorted((+scanner.ignored).items())]
    if scanner.set_aside:
        counts.append(
            f"{len(scanner.set_aside)} set aside, such as {scanner.set_aside[0][0]}: {scanner.set_aside[0][1]}"
        )
    return f" ({'; '.join(counts)})" if counts else ""
