"""Decoded training pictures, kept so that no epoch after the first decodes: in memory when they fit, else in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeopt.environment import memory_bytes
from edgeopt.preprocess import UInt8

#: Share of the machine's memory that decoded pictures may take.
_MEMORY_SHARE = 0.25
_UNKNOWN_MEMORY = 4 * 2**30


class PictureCache:
    """uint8 (height, width, 3) pictures of any sizes by index, end to end in one buffer.

    The buffer is memory up to ``limit`` bytes (by default a quarter of the machine's), then an unnamed temporary file
    in ``folder`` that the system removes when the process ends.
    """

    def __init__(self, pictures: Iterable[UInt8], *, limit: int | None = None, folder: Path | None = None) -> None:
        self._limit = limit if limit is not None else int((memory_bytes() or _UNKNOWN_MEMORY) * _MEMORY_SHARE)
        self._shapes: list[tuple[int, int]] = []
        self._starts: list[int] = []
        self._buffer = self._fill(pictures, folder)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> UInt8:
        (height, width), start = self._shapes[index], self._starts[index]
        return self._buffer[start : start + height * width * 3].reshape(height, width, 3)

    @property
    def on_disk(self) -> bool:
        """Whether the pictures did not fit into memory."""
        return isinstance(self._buffer, np.memmap)

    def _fill(self, pictures: Iterable[UInt8], folder: Path | None) -> npt.NDArray[np.uint8]:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        size = 0
        # Stays in memory up to the limit and moves itself to the file when it grows past it.
        with tempfile.SpooledTemporaryFile(max_size=self._limit, dir=str(folder) if folder else None) as spool:
            for picture in pictures:
                self._shapes.append((picture.shape[0], picture.shape[1]))
                self._starts.append(size)
                spool.write(np.ascontiguousarray(picture).data)
                size += picture.size
            if size == 0:
                return np.empty(0, dtype=np.uint8)
            spool.seek(0)
            if size > self._limit:
                return np.memmap(spool, dtype=np.uint8, mode="r", shape=(size,))
            return np.frombuffer(spool.read(), dtype=np.uint8)


class Shelf:
    """Decoded pictures of one dataset kept for the next training: those of the last two ways they were prepared."""

    def __init__(self, room: int = 2) -> None:
        self._room = room
        self._kept: dict[str, PictureCache] = {}

    def get(self, key: str, make: Callable[[], PictureCache]) -> PictureCache:
        """What is kept under ``key``, made when it is not."""
        found = self._kept.pop(key, None)
        if found is None:
            while len(self._kept) >= self._room:  # before another is made: both might not fit into memory
                del self._kept[next(iter(self._kept))]
            found = make()
        self._kept[key] = found  # the last one used is the last to go
        return found
