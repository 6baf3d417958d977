"""Prepared picture sets: uint8 pictures and labels as memory-mapped ``.npy``, readable without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt import records
from edgeopt.config import validate
from edgeopt.errors import ConfigError, RunError
from edgeopt.files import read_npy, sha256, write_atomically, write_json
from edgeopt.preprocess import Float32, PreprocessSpec, UInt8, normalize

_FIX = records.SetRecord.fix


@dataclass(frozen=True)
class PictureSet:
    """``pictures`` uint8 (N, height, width, 3), mapped; ``labels`` int64 (N,); ``paths`` in the data."""

    name: str
    pictures: UInt8
    labels: npt.NDArray[np.int64]
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, first: int, step: int) -> PictureSet:
        """Every ``step``-th picture from ``first`` on: the parts 0 to ``step`` - 1 hold each picture once."""
        rows = slice(first, None, step)
        return PictureSet(self.name, self.pictures[rows], self.labels[rows], self.paths[rows])

    def batches(self, spec: PreprocessSpec, size: int) -> Iterator[Float32]:
        """float32 (<= size, 3, height, width) in order, normalized as ``spec`` says."""
        for pictures in self.pieces(size):
            yield normalize(pictures, spec)

    def pieces(self, size: int) -> Iterator[UInt8]:
        """uint8 (<= size, height, width, 3) in order."""
        for start in range(0, len(self), size):
            yield np.asarray(self.pictures[start : start + size])


def open_set(folder: Path, name: str, *, checked: bool = False) -> PictureSet:
    """The set ``name`` (calib, val, test) in ``data/sets/<preprocess-key>/``; RunError when absent or damaged.

    Its files are compared with the hashes in its record, once in a process. ``checked`` leaves that out, for the
    processes of a benchmark, whose parent did it.
    """
    stated = records.read(records.SetRecord, folder / f"{name}.json")  # written last: without it, it is half-made
    files = (folder / f"{name}.npy", folder / f"{name}.labels.npy")
    if not checked:
        for path in files:
            _check_hash(path, stated["sha256"])
    pictures, labels = read_npy(files[0], "|u1", mapped=True), read_npy(files[1], "<i8")
    size = _size(folder, stated)
    count = len(stated["paths"])
    if not count:
        raise RunError(f"the {name} set in {folder} is empty", fix=_FIX)
    if pictures.shape != (count, *size, 3) or labels.shape != (count,) or labels.min() < 0:
        raise RunError(f"the {name} set in {folder} is damaged: its pictures, labels and names do not fit", fix=_FIX)
    return PictureSet(name=name, pictures=pictures, labels=labels.astype(np.int64), paths=tuple(stated["paths"]))


def write_prepared(
    folder: Path,
    name: str,
    spec: PreprocessSpec,
    *,
    fill: Callable[[Path], object],
    labels: Sequence[int],
    paths: Sequence[str],
) -> None:
    """Write the set ``name`` as :func:`open_set` reads it; ``fill`` writes its uint8 (N, height, width, 3)."""
    record = folder / f"{name}.json"
    record.unlink(missing_ok=True)  # the files it vouches for are about to change
    pictures, answers = folder / f"{name}.npy", folder / f"{name}.labels.npy"
    write_atomically(pictures, fill)
    write_atomically(answers, lambda path: np.save(path, np.asarray(labels, dtype=np.int64)))
    write_json(
        record,
        {
            "schema": 1,
            "name": name,
            "paths": list(paths),
            "preprocess": spec.to_json(),
            "sha256": {path.name: sha256(path) for path in (pictures, answers)},
        },
    )


def _size(folder: Path, stated: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of the pictures, by the preprocessing they were prepared with."""
    try:
        return validate(PreprocessSpec, stated["preprocess"], where=str(folder)).size
    except ConfigError as error:
        raise RunError(f"a set in {folder} is damaged: {error.message}", fix=_FIX) from None


def _check_hash(path: Path, stated: Mapping[str, str]) -> None:
    try:
        found = path.stat()
        same = _hash(path, found.st_size, found.st_mtime_ns) == stated.get(path.name)
    except OSError as error:
        raise RunError(f"the prepared set {path} cannot be read: {error.strerror}", fix=_FIX) from None
    if not same:
        raise RunError(f"{path} was changed since it was written", fix=_FIX)


@lru_cache(maxsize=64)
def _hash(path: Path, _size: int, _mtime_ns: int) -> str:
    """Of a gigabyte takes seconds, and a benchmark opens the same set once an engine."""
    return sha256(path)
