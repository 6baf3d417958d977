"""Near duplicates: pictures that differ by compression, size or a little light, found by comparing small thumbnails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeopt.errors import DataError
from edgeopt.preprocess import UInt8, to_rgb

#: Two pictures are near duplicates when their 16x16 thumbnails differ by at most this: the root mean square over all
#: values, the largest difference in luma, in grey levels; and the first as a share of the poorer one's own spread.
#: benchmarks/checks.py measures what that finds.
MOST_RMS, MOST_LUMA, MOST_OF_SPREAD = 11.0, 13.0, 0.3

_SIDE = 16
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_MOST_PAIRS = 2_000_000
_ROWS = 256
_PAIRS_AT_ONCE = 8192


def thumbnail(image: Image.Image) -> UInt8:
    """uint8 (16, 16, 3): the whole picture, squashed."""
    return np.asarray(to_rgb(image).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0))


def near_pairs(thumbnails: Sequence[UInt8]) -> list[tuple[int, int, float]]:
    """(i, j, distance) of every pair i < j of near duplicates, nearest first; the distance is the RMS in grey levels.

    Every pair is looked at: first at 4x4 means, which are never farther apart than the thumbnails they are of. Raises
    DataError when there are millions of pairs.
    """
    if not thumbnails:
        return []
    values = np.stack(list(thumbnails)).astype(np.float32)
    spread = values.std(axis=(1, 2, 3))
    pairs: list[tuple[int, int, float]] = []
    for first, second in _candidates(values):
        difference = values[first] - values[second]
        rms = np.sqrt((difference**2).mean(axis=(1, 2, 3)))
        luma = np.abs(difference @ _LUMA).max(axis=(1, 2))
        poorer = np.minimum(spread[first], spread[second])
        near = (rms <= MOST_RMS) & (luma <= MOST_LUMA) & (rms <= MOST_OF_SPREAD * poorer)
        pairs += zip(first[near].tolist(), second[near].tolist(), rms[near].tolist(), strict=True)
        if len(pairs) > _MOST_PAIRS:
            raise DataError(
                f"there are more than {_MOST_PAIRS} pairs of near duplicates: most of the pictures look alike",
                fix="check without near duplicates, or keep fewer frames of each video",
            )
    return sorted(pairs, key=lambda pair: (pair[2], pair[:2]))


def _candidates(values: npt.NDArray[np.float32]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Index arrays of the pairs whose 4x4 means are near enough, some thousands at a time."""
    count = len(values)
    means = values.reshape(count, 4, _SIDE // 4, 4, _SIDE // 4, 3).mean(axis=(2, 4)).reshape(count, -1)
    squares = (means**2).sum(axis=1)
    limit = np.float32(MOST_RMS**2 * means.shape[1] * 1.001 + 1.0)  # float32 sums of large squares are not exact
    for start in range(0, count, _ROWS):
        rows = slice(start, min(start + _ROWS, count))
        distances = squares[rows, None] + squares[None, start:] - 2 * means[rows] @ means[start:].T
        first, second = np.nonzero(distances <= limit)
        upper = second > first
        first, second = first[upper] + start, second[upper] + start
        for begin in range(0, len(first), _PAIRS_AT_ONCE):
            yield first[begin : begin + _PAIRS_AT_ONCE], second[begin : begin + _PAIRS_AT_ONCE]


def complete_link(pairs: Iterable[tuple[int, int, float]]) -> list[list[int]]:
    """Groups of two and more in which every picture is a near duplicate of every other.

    ``pairs`` come nearest first; two groups become one when all pairs across them are near duplicates (complete
    linkage), so that a chain of small differences does not tie unlike pictures together.
    """
    pairs = list(pairs)
    links: dict[int, dict[int, int]] = defaultdict(dict)  # group -> group -> near pairs across
    for first, second, _ in pairs:
        links[first][second] = links[second][first] = 1
    members = {index: [index] for index in links}
    group_of = {index: index for index in links}
    for first, second, _ in pairs:
        left, right = group_of[first], group_of[second]
        if left == right or links[left].get(right, 0) < len(members[left]) * len(members[right]):
            continue
        if len(links[left]) < len(links[right]):
            left, right = right, left
        for index in members[right]:
            group_of[index] = left
        members[left] += members.pop(right)
        for other, count in links.pop(right).items():
            del links[other][right]
            if other != left:
                links[left][other] = links[other][left] = links[left].get(other, 0) + count
    return sorted(sorted(group) for group in members.values() if len(group) > 1)
