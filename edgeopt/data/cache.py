"""Decoded training pictures, kept so that no epoch after the first decodes: in memory, then in a file, as they fit."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt import allotment
from edgeopt.preprocess import UInt8

#: Share of the memory of the machine, or of the container, that decoded pictures of all processes on it may take.
_MEMORY_SHARE = 0.25
_UNKNOWN_MEMORY = 4 * 2**30
#: What is left free on a disk, for checkpoints and everybody else.
_DISK_MARGIN = 2 * 2**30


def memory_limit(among: int = 1) -> int:
    """Bytes that each of ``among`` caches of every process that a launcher started on this machine may hold in memory.

    A cgroup's limit counts as the machine's memory.
    """
    size = allotment.usable_memory_bytes() or _UNKNOWN_MEMORY
    return int(size * _MEMORY_SHARE) // (allotment.local_process_count() * among)


class PictureCache:
    """uint8 (height, width, 3) pictures of any sizes by index.

    The first ones, up to ``limit`` bytes, are held in memory; those after them in an unnamed, memory-mapped file that
    the system removes when the process ends; where the disk has no room for them, ``again`` makes the rest anew
    whenever they are asked for. The file is in ``folder`` if that is on a disk, else among temporary files, if these
    are.
    """

    def __init__(
        self,
        pictures: Iterable[UInt8],
        *,
        again: Callable[[int], UInt8],
        limit: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self._held: list[UInt8] = []
        self._file: _PictureFile | None = None
        self._again: Callable[[int], UInt8] | None = None
        limit = memory_limit() if limit is None else limit
        for picture in pictures:
            limit -= picture.nbytes
            if limit >= 0 and self._file is None:
                self._held.append(np.ascontiguousarray(picture))
                continue
            self._file = self._file or _opened(folder)
            if self._file is None or not self._file.add(picture):
                self._again = again
                break
        if self._file is not None:
            self._file.map()

    def __getitem__(self, index: int) -> UInt8:
        if index < len(self._held):
            return self._held[index]
        if index < self.kept:
            assert self._file is not None
            return self._file[index - len(self._held)]
        if self._again is None:
            raise IndexError(index)
        return self._again(index)

    @property
    def kept(self) -> int:
        """How many are not made anew."""
        return len(self._held) + self.on_disk

    @property
    def on_disk(self) -> int:
        """How many are in the file."""
        return 0 if self._file is None else len(self._file)


class _PictureFile:
    """Pictures end to end in a file without a name; :meth:`map` after the last one was added.

    Sent to a process that is not forked, the file is shared, not copied.
    """

    def __init__(self, folder: Path) -> None:
        # Without a buffer of its own: what a full disk refuses would be written again when it is closed.
        self._handle = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - lives as long as this
        self._folder = folder
        self._shapes: list[tuple[int, ...]] = []
        self._ends = [0]
        self._share()

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> UInt8:
        return self._bytes[self._ends[index] : self._ends[index + 1]].reshape(self._shapes[index])

    def add(self, picture: UInt8) -> bool:
        """Append a picture; False, and nothing is there, when the disk has no room."""
        try:
            if shutil.disk_usage(self._folder).free < _DISK_MARGIN + picture.nbytes:
                return False
            # A disk that has just become full takes a part of it, or none.
            if self._handle.write(np.ascontiguousarray(picture).data) != picture.nbytes:
                return False
        except OSError:
            return False
        self._shapes.append(picture.shape)
        self._ends.append(self._ends[-1] + picture.nbytes)
        return True

    def map(self) -> None:
        """Read from memory that the system fills from the file, and takes back when it needs it."""
        size = self._ends[-1]
        self._bytes: npt.NDArray[np.uint8] = (
            np.memmap(self._handle, dtype=np.uint8, mode="r", shape=(size,)) if size else np.empty(0, dtype=np.uint8)
        )

    def __getstate__(self) -> dict[str, Any]:
        from multiprocessing.reduction import DupFd

        return {"handle": DupFd(self._handle.fileno()), "shapes": self._shapes, "ends": self._ends}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._handle = os.fdopen(state["handle"].detach(), "rb", buffering=0)
        self._shapes, self._ends = state["shapes"], state["ends"]
        self._share()
        self.map()

    def _share(self) -> None:
        """The file goes with the last who has it."""
        weakref.finalize(self, self._handle.close)


def _opened(folder: Path | None) -> _PictureFile | None:
    """A file in ``folder`` or among temporary files, where that is on a disk and can be written; None: nowhere."""
    for place in (folder, None):
        with suppress(OSError):
            place = place or Path(tempfile.gettempdir())
            if not allotment.is_memory(place):
                return _PictureFile(place)
    return None


class Shelf:
    """Decoded pictures of one dataset kept for the next training: those of the last two ways they were prepared.

    ``processes`` is how many on this machine have a shelf like it.
    """

    def __init__(self, room: int = 2, *, processes: int = 1) -> None:
        self.caches = room * processes  # which share the memory
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
