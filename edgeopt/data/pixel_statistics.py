"""Mean and standard deviation of the train pictures' pixels, exact to the last integer."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from edgeopt.console import Progress
from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.sets import load_item
from edgeopt.data.threads import in_threads
from edgeopt.errors import DataError
from edgeopt.picture_files import DEFAULT_MAX_PIXELS
from edgeopt.preprocess import PreprocessSpec

Channels = tuple[float, float, float]

#: A channel that hardly varies is divided by one grey level, not by nearly nothing.
_LEAST_DEVIATION = 1 / 255


def pixel_statistics(
    dataset: Dataset,
    items: Sequence[Item],
    spec: PreprocessSpec,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
) -> tuple[Channels, Channels]:
    """Mean and (population) standard deviation by channel over all pixels of ``items`` as ``spec`` prepares them.

    Pixels are scaled to [0, 1]. Sums are of integers, so the result depends neither on the order nor on the machine;
    a deviation of less than one grey level counts as one. Raises DataError when there is nothing to measure.
    """
    if not items:
        raise DataError("there are no train pictures to measure", fix="add pictures to train")
    count, total, squares = 0, [0, 0, 0], [0, 0, 0]
    for done, picture in enumerate(in_threads(lambda item: load_item(dataset, item, spec, max_pixels), items), 1):
        for channel in range(3):
            levels = np.bincount(picture[..., channel].ravel(), minlength=256)
            total[channel] += int(levels @ np.arange(256))
            squares[channel] += int(levels @ np.arange(256) ** 2)
        count += picture.shape[0] * picture.shape[1]
        if progress is not None:
            progress(done, len(items))
    red, green, blue = zip(total, squares, strict=True)
    statistics = [(s / count / 255, sqrt(count * q - s * s) / count / 255) for s, q in (red, green, blue)]
    (r, dr), (g, dg), (b, db) = ((mean, max(deviation, _LEAST_DEVIATION)) for mean, deviation in statistics)
    return (r, g, b), (dr, dg, db)
