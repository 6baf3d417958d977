"""Prepared picture sets: uint8 pictures and labels as memory-mapped ``.npy``, readable without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeopt.errors import RunError
from edgeopt.preprocess import Float32, PreprocessSpec, UInt8, normalize


@dataclass(frozen=True)
class PictureSet:
    """``pictures`` uint8 (N, height, width, 3), mapped; ``labels`` int64 (N,); ``paths`` in the data."""

    name: str
    pictures: UInt8
    labels: npt.NDArray[np.int64]
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, spec: PreprocessSpec, size: int) -> Iterator[Float32]:
        """float32 (<= size, 3, height, width) in order, normalized as ``spec`` says."""
        for start in range(0, len(self), size):
            yield normalize(np.asarray(self.pictures[start : start + size]), spec)


def open_set(folder: Path, name: str) -> PictureSet:
    """The set ``name`` (calib, val, test) in ``data/sets/<preprocess-key>/``; RunError when absent or damaged."""
    record = folder / f"{name}.json"  # written last: a set without it is half-made
    try:
        stated = json.loads(record.read_text(encoding="utf-8"))
        pictures = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / f"{name}.labels.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RunError(
            f"the prepared {name} set in {folder} cannot be read ({error})",
            fix="make it on the machine that has the pictures: edgeopt export",
        ) from None
    paths = tuple(str(path) for path in stated.get("paths", ()))
    if pictures.ndim != 4 or pictures.dtype != np.uint8 or not len(pictures) == len(labels) == len(paths):
        raise RunError(f"the {name} set in {folder} is damaged", fix=f"delete {folder} and run: edgeopt export")
    return PictureSet(name=name, pictures=pictures, labels=labels.astype(np.int64), paths=paths)
