"""The dataset as a record: which pictures, which labels, which split, and what was set aside and why."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from PIL import Image

from edgeopt.data import torchvision_source
from edgeopt.errors import DataError, RunError
from edgeopt.files import printable, read_json, sha256, write_json, write_text
from edgeopt.picture_files import DEFAULT_MAX_PIXELS, decoded, why_no_file
from edgeopt.preprocess import to_rgb
from edgeopt.records import SplitRecord

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """One picture: ``path`` is POSIX and relative to the dataset's root; ``sha256`` is of the file's bytes.

    Pictures of ``torchvision:`` datasets have no file of their own: their path is ``train/000012`` and their hash is
    of their pixels. ``weight`` is how often training shows it, next to others: 1 unless a manifest says otherwise.
    ``group`` is equal, and not empty, in pictures that may not be divided: copies of each other, or of one group of a
    manifest.
    """

    path: str
    label: int
    sha256: str
    split: Split
    weight: float = 1.0
    group: str = ""


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures, split. ``classes`` are sorted; ``items`` are sorted by path.

    ``root`` is a folder, or ``torchvision:NAME@/folder``. ``set_aside`` holds (path, reason) of everything that looked
    like a picture and is not used; ``ignored`` counts by kind what did not look like one; ``notes`` say what is odd
    about what is used.
    """

    root: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    set_aside: tuple[tuple[str, str], ...] = ()
    ignored: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over classes, paths, labels, contents, splits and weights; not over where the dataset lies."""
        rows = [
            [item.path, item.label, item.sha256, item.split, *([item.weight] if item.weight != 1.0 else [])]
            for item in self.items
        ]
        return hashlib.sha256(json.dumps([list(self.classes), rows]).encode()).hexdigest()

    def of(self, split: Split) -> tuple[Item, ...]:
        """The items of one split, sorted by path."""
        return tuple(item for item in self.items if item.split == split)

    def counts(self) -> dict[str, int]:
        """Pictures by split."""
        return {split: len(self.of(split)) for split in SPLITS}

    def at(self, root: str) -> Dataset:
        """The same record with its pictures in another place."""
        return replace(self, root=root)

    def open(
        self, item: Item, *, max_pixels: int = DEFAULT_MAX_PIXELS, draft: tuple[int, int] | None = None
    ) -> AbstractContextManager[Image.Image]:
        """The item's picture for a ``with`` block, as :func:`edgeopt.picture_files.decoded` reads it; DataError."""
        if torchvision_source.is_reference(self.root):
            return nullcontext(torchvision_source.picture(self.root, item.path))
        return decoded(self._file(item), max_pixels=max_pixels, draft=draft)

    def encoded(self, item: Item) -> tuple[bytes, str]:
        """The item's file as bytes and its suffix such as ``.jpg``; PNG for datasets that have no files."""
        if torchvision_source.is_reference(self.root):
            buffer = io.BytesIO()
            to_rgb(torchvision_source.picture(self.root, item.path)).save(buffer, format="PNG")
            return buffer.getvalue(), ".png"
        path = self._file(item)
        try:
            return path.read_bytes(), path.suffix.lower()
        except OSError as error:
            raise _gone(path, error.strerror) from None

    def check_unchanged(self, item: Item) -> None:
        """Raise DataError when the item's file is not the one that was split: its split might no longer be honest."""
        if torchvision_source.is_reference(self.root):
            return
        path = self._file(item)
        try:
            same = sha256(path) == item.sha256
        except OSError as error:
            raise _gone(path, error.strerror) from None
        if not same:
            raise DataError(
                f"{printable(str(path))} has changed since the dataset was split",
                fix="put it back, or start a new run on the new data",
            )

    def write(self, folder: Path) -> None:
        """Write ``labels.txt``, ``issues.json`` and, last and atomically, ``split.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "labels.txt", "".join(f"{name}\n" for name in self.classes))
        self.write_issues(folder)
        record = {
            "schema": 1,
            "fingerprint": self.fingerprint,
            "root": self.root,
            "classes": list(self.classes),
            "items": [[item.path, item.label, item.sha256, item.split] for item in self.items],
            "weights": {item.path: item.weight for item in self.items if item.weight != 1.0},
            "groups": {item.path: item.group for item in self.items if item.group},
        }
        write_json(folder / "split.json", record)

    def write_issues(self, folder: Path) -> None:
        """Write ``issues.json`` into ``folder``: every path that was set aside, with its reason."""
        issues = {
            "schema": 1,
            "set_aside": [{"path": path, "reason": reason} for path, reason in self.set_aside],
            "ignored": dict(self.ignored),
            "notes": list(self.notes),
        }
        write_json(folder / "issues.json", issues)

    @classmethod
    def read(cls, folder: Path) -> Dataset:
        """What :meth:`write` left in ``folder``; raises RunError when it is absent, damaged or leaves its root."""
        path = folder / "split.json"
        record = read_json(path, limit=SplitRecord.limit)
        if record.get("schema") != 1:
            raise RunError(
                f"{path} has schema {record.get('schema')!r}; this edgeopt reads schema 1", fix="upgrade edgeopt"
            )
        try:
            classes = tuple(str(name) for name in record["classes"])
            weights = {str(name): _weight(value) for name, value in record.get("weights", {}).items()}
            groups = {str(name): str(group) for name, group in record.get("groups", {}).items()}
            items = tuple(_item(row, len(classes), path, weights, groups) for row in record["items"])
            root, fingerprint = str(record["root"]), str(record["fingerprint"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None
        dataset = cls(root, classes, items, *_issues(folder / "issues.json"))
        if dataset.fingerprint != fingerprint:
            raise _damaged(path, "its fingerprint does not fit its lists")
        return dataset

    def _file(self, item: Item) -> Path:
        """Where the item's file is; raises DataError when a link leads out of the root, or to no file."""
        path = Path(self.root) / item.path
        # Unlike Path.resolve, it stands links that lead in circles.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise DataError(
                f"{printable(str(path))} leads out of {self.root}", fix="put the picture itself there, not a link"
            )
        if reason := why_no_file(path):
            raise _gone(path, reason)
        return path


def _gone(path: Path, reason: str | None) -> DataError:
    return DataError(
        f"{printable(str(path))} cannot be read ({reason})",
        fix="put it back, or say where the pictures are with --data",
    )


def _damaged(path: Path, why: str) -> RunError:
    return RunError(f"{path} is damaged ({why})", fix="copy the run again, or start a new one")


def _item(row: Any, classes: int, record: Path, weights: Mapping[str, float], groups: Mapping[str, str]) -> Item:
    path, label, digest, split = row
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\0" in path or "\\" in path:
        raise RunError(f"{record} names {path!r}, which is not inside the dataset", fix="do not use this run")
    if type(label) is not int or not 0 <= label < classes or split not in SPLITS or not isinstance(digest, str):
        raise ValueError(f"item {path!r}")
    return Item(path, label, digest, cast(Split, split), weights.get(path, 1.0), groups.get(path, ""))


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not 0 < value < 1e6:
        raise ValueError(f"the weight {value!r:.60}")
    return float(value)


def _issues(path: Path) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, int], ...], tuple[str, ...]]:
    """What was set aside, ignored and noted; nothing when the file was not copied along."""
    if not path.is_file():
        return (), (), ()
    record = read_json(path, limit=SplitRecord.limit)
    try:
        rows: Iterable[Mapping[str, Any]] = record["set_aside"]
        aside = tuple((str(row["path"]), str(row["reason"])) for row in rows)
        ignored = tuple((str(kind), int(count)) for kind, count in record["ignored"].items())
        notes = tuple(str(note) for note in record.get("notes", ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    return aside, ignored, notes
