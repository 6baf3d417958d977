"""Many pictures in threads: decoding and hashing let other threads run; memory stays flat however many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edgeopt.environment import usable_cores
from edgeopt.picture_files import pillow_quiet

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
