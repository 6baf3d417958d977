"""The dataset as a record: which pictures, which labels, which split, and what was set aside and why."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from PIL import Image

from edgeopt.data import torchvision_source
from edgeopt.errors import DataError, RunError
from edgeopt.files import read_json, write_json, write_text
from edgeopt.preprocess import DEFAULT_MAX_PIXELS, open_picture, to_rgb

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """One picture: ``path`` is POSIX and relative to the dataset's root; ``sha256`` is of the file's bytes.

    Pictures of ``torchvision:`` datasets have no file of their own: their path is ``train/000012`` and their hash is
    of their pixels.
    """

    path: str
    label: int
    sha256: str
    split: Split


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures, split. ``classes`` are sorted; ``items`` are sorted by path.

    ``root`` is a folder, or ``torchvision:NAME@/folder``. ``set_aside`` holds (path, reason) of everything that looked
    like a picture and is not used; ``ignored`` counts by kind what did not look like one.
    """

    root: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    set_aside: tuple[tuple[str, str], ...] = ()
    ignored: tuple[tuple[str, int], ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over classes, paths, labels, contents and splits; not over where the dataset lies."""
        rows = [[item.path, item.label, item.sha256, item.split] for item in self.items]
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
    ) -> Image.Image:
        """The item's picture, decoded and upright (see :func:`edgeopt.preprocess.open_picture`); raises DataError."""
        if torchvision_source.is_reference(self.root):
            return torchvision_source.picture(self.root, item.path)
        return open_picture(self._file(item), max_pixels=max_pixels, draft=draft)

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
            raise _gone(path, error) from None

    def check_unchanged(self, item: Item) -> None:
        """Raise DataError when the item's file is not the one that was split: its split might no longer be honest."""
        if torchvision_source.is_reference(self.root):
            return
        path = self._file(item)
        try:
            same = hashlib.sha256(path.read_bytes()).hexdigest() == item.sha256
        except OSError as error:
            raise _gone(path, error) from None
        if not same:
            raise DataError(
                f"{path} has changed since the dataset was split", fix="put it back, or start a new run on the new data"
            )

    def write(self, folder: Path) -> None:
        """Write ``labels.txt``, ``issues.json`` and, last and atomically, ``split.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "labels.txt", "".join(f"{name}\n" for name in self.classes))
        issues = {
            "schema": 1,
            "set_aside": [{"path": path, "reason": reason} for path, reason in self.set_aside],
            "ignored": dict(self.ignored),
        }
        write_json(folder / "issues.json", issues)
        record = {
            "schema": 1,
            "fingerprint": self.fingerprint,
            "root": self.root,
            "classes": list(self.classes),
            "items": [[item.path, item.label, item.sha256, item.split] for item in self.items],
        }
        write_json(folder / "split.json", record)

    @classmethod
    def read(cls, folder: Path) -> Dataset:
        """What :meth:`write` left in ``folder``; raises RunError when it is absent, damaged or leaves its root."""
        path = folder / "split.json"
        record = read_json(path)
        if record.get("schema") != 1:
            raise RunError(
                f"{path} has schema {record.get('schema')!r}; this edgeopt reads schema 1", fix="upgrade edgeopt"
            )
        try:
            classes = tuple(str(name) for name in record["classes"])
            items = tuple(_item(row, len(classes), path) for row in record["items"])
            root, fingerprint = str(record["root"]), str(record["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None
        issues = _issues(folder / "issues.json")
        dataset = cls(root, classes, items, issues[0], issues[1])
        if dataset.fingerprint != fingerprint:
            raise _damaged(path, "its fingerprint does not fit its lists")
        return dataset

    def _file(self, item: Item) -> Path:
        """Where the item's file is; raises DataError when a link leads out of the root."""
        root = Path(self.root)
        path = root / item.path
        if not path.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{path} leads out of {root}", fix="put the picture itself there, not a link")
        return path


def _gone(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be read ({error.strerror})", fix="put it back, or say where the pictures are with --data"
    )


def _damaged(path: Path, why: str) -> RunError:
    return RunError(f"{path} is damaged ({why})", fix="copy the run again, or start a new one")


def _item(row: Any, classes: int, record: Path) -> Item:
    path, label, digest, split = row
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\0" in path or "\\" in path:
        raise RunError(f"{record} names {path!r}, which is not inside the dataset", fix="do not use this run")
    if type(label) is not int or not 0 <= label < classes or split not in SPLITS or not isinstance(digest, str):
        raise ValueError(f"item {path!r}")
    return Item(path, label, digest, cast(Split, split))


def _issues(path: Path) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, int], ...]]:
    """What was set aside and ignored; nothing when the file was not copied along."""
    if not path.is_file():
        return (), ()
    record = read_json(path)
    try:
        rows: Iterable[Mapping[str, Any]] = record["set_aside"]
        aside = tuple((str(row["path"]), str(row["reason"])) for row in rows)
        ignored = tuple((str(kind), int(count)) for kind, count in record["ignored"].items())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    return aside, ignored
