"""Lists the pictures of a class folder or of ready-made train/val/test folders, without opening them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from edgeopt.data.dataset import Split
from edgeopt.errors import DataError

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "bmp", "dib", "gif", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif", "tga", "ico"),
    )
)
_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Found:
    """A file that should be a picture: POSIX path relative to the root, class name, ready-made split or None."""

    path: str
    label: str
    split: Split | None


@dataclass(frozen=True)
class Listing:
    """What a source holds; ``ready_made`` are the splits it comes with."""

    found: tuple[Found, ...]
    classes: tuple[str, ...]
    ready_made: tuple[Split, ...] = ()
    set_aside: tuple[tuple[str, str], ...] = ()
    ignored: tuple[tuple[str, int], ...] = ()


def scan(root: Path) -> Listing:
    """The pictures under ``root``, in an order that does not depend on the file system; raises DataError."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}", fix="give the folder that holds one folder of pictures for each class")
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
            scanner.set_aside.append((folder.name, "beside the train folder, but not a split"))
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
    return Listing(found, classes, ready_made, tuple(scanner.set_aside), tuple(sorted(scanner.ignored.items())))


def _split_folders(root: Path) -> dict[Path, Split]:
    """The ready-made split folders of ``root``; empty when its folders are classes (one may be called train)."""
    splits = {
        folder: _SPLIT_FOLDERS[folder.name.lower()]
        for folder in _folders(root)
        if folder.name.lower() in _SPLIT_FOLDERS
    }
    kinds = list(splits.values())
    others = len(_folders(root)) - len(splits)
    if "train" not in kinds or (len(set(kinds)) == 1 and others) or not any(_folders(folder) for folder in splits):
        return {}
    doubled = sorted(folder.name for folder, split in splits.items() if kinds.count(split) > 1)
    if doubled:
        raise DataError(
            f"{root} has two folders for one split: {', '.join(doubled)}", fix="merge or rename one of them"
        )
    return splits


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not _hidden(path.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "Thumbs.db")


class _Scanner:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.inside = root.resolve()
        self.found: list[Found] = []
        self.set_aside: list[tuple[str, str]] = []
        self.ignored: Counter[str] = Counter()

    def add_class(self, folder: Path, split: Split | None) -> None:
        """Every picture at any depth of ``folder``, whose name is the class."""
        before = len(self.found) + len(self.set_aside)
        if not _printable(folder.name):
            self.set_aside.append((_shown(self._relative(folder)), "its name cannot be written in labels.txt"))
            return
        if folder.is_symlink():
            self.set_aside.append((self._relative(folder), "a link to a folder; put the pictures themselves there"))
            return
        for parent, folders, files in os.walk(folder):
            for name in folders:
                if (Path(parent) / name).is_symlink():
                    self._set_aside_link(Path(parent) / name)
            self.ignored["hidden"] += sum(_hidden(name) for name in folders)
            folders[:] = [name for name in folders if not _hidden(name)]
            for name in files:
                self._add_file(Path(parent) / name, folder.name, split)
        if len(self.found) + len(self.set_aside) == before:
            self.set_aside.append((self._relative(folder), "a folder without pictures"))

    def add_strays(self, folder: Path) -> None:
        """Pictures beside the class folders belong to no class."""
        for path in folder.iterdir():
            if path.is_file() and self._is_picture(path):
                self.set_aside.append((_shown(self._relative(path)), "in no class folder"))

    def _add_file(self, path: Path, label: str, split: Split | None) -> None:
        if not self._is_picture(path):
            return
        relative = self._relative(path)
        if _shown(relative) != relative or "\\" in relative:
            self.set_aside.append((_shown(relative), "its name is not valid UTF-8 or holds a backslash"))
        elif path.is_symlink() and not path.resolve().is_relative_to(self.inside):
            self.set_aside.append((relative, "a link that leads out of the dataset"))
        else:
            self.found.append(Found(relative, label, split))

    def _set_aside_link(self, path: Path) -> None:
        self.set_aside.append((_shown(self._relative(path)), "a link to a folder; put the pictures themselves there"))

    def _is_picture(self, path: Path) -> bool:
        if _hidden(path.name):
            self.ignored["hidden"] += 1
            return False
        if path.suffix.lower() not in SUFFIXES:
            self.ignored["not a picture"] += 1
            return False
        return True

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _printable(name: str) -> bool:
    return _shown(name) == name and name.isprintable() and name == name.strip()


def _shown(name: str) -> str:
    """``name`` with what is not valid UTF-8 escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _what_instead(scanner: _Scanner) -> str:
    counts = [f"{count} {kind}" for kind, count in sorted(scanner.ignored.items())]
    if scanner.set_aside:
        counts.append(
            f"{len(scanner.set_aside)} set aside, such as {scanner.set_aside[0][0]}: {scanner.set_aside[0][1]}"
        )
    return f" ({'; '.join(counts)})" if counts else ""
