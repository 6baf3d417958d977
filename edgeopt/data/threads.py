"""Many pictures in threads: decoding and hashing let other threads run; memory stays flat however many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from edgeopt.allotment import usable_cores
from edgeopt.picture_files import pillow_quiet
from edgeopt.preprocess import UInt8

Source = TypeVar("Source")
Result = TypeVar("Result")
_AHEAD = 64


def in_threads(function: Callable[[Source], Result], sources: Sequence[Source]) -> Iterator[Result]:
    """``function`` of each source, in order, with a bounded number in flight and Pillow's warnings not shown."""
    with ThreadPoolExecutor(max_workers=min(16, usable_cores())) as pool:
        for start in range(0, len(sources), _AHEAD):
            with pillow_quiet():
                results = list(pool.map(function, sources[start : start + _AHEAD]))
            yield from results


def stacked(pictures: Iterator[UInt8], size: int) -> Iterator[UInt8]:
    """uint8 (<= ``size``, height, width, 3) of pictures (height, width, 3), read as they are needed."""
    waiting: list[UInt8] = []
    for picture in pictures:
        waiting.append(picture)
        if len(waiting) == size:
            yield np.stack(waiting)
            waiting.clear()
    if waiting:
        yield np.stack(waiting)
