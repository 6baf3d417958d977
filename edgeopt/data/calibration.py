"""Draws the pictures whose activations set the int8 ranges: from train only, fixed, in class proportions."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import numpy.typing as npt

from edgeopt.config import CalibrationRecipe
from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.split import draw, proportional
from edgeopt.data.threads import in_threads
from edgeopt.errors import DataError
from edgeopt.picture_files import DEFAULT_MAX_PIXELS
from edgeopt.preprocess import PreprocessSpec, prepare

FEWEST = 16
_THUMBNAIL = PreprocessSpec(size=(16, 16), resize="squash", interpolation="bilinear")


def draw_calibration(
    dataset: Dataset,
    recipe: CalibrationRecipe,
    features: npt.NDArray[np.floating] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> tuple[Item, ...]:
    """The calibration items, sorted by path: distinct pictures of train in class proportions, fixed by ``recipe.seed``.

    All of train when it has fewer than ``recipe.count``: the caller says so. ``selection = "diverse"`` takes, in each
    class, the picture nearest to the class's mean and then always the one farthest from those taken (k-center greedy,
    Gonzalez 1985; Sener & Savarese 2018, https://arxiv.org/abs/1708.00489) by ``features``, float (N, D) in the order
    of ``dataset.of("train")``; without features, by the pixels of 16x16 thumbnails. Raises DataError when fewer than
    16 pictures can be had, when a class is absent from train, or when ``recipe.count`` is below the number of classes.
    """
    train = dataset.of("train")
    distinct = {item.sha256: index for index, item in reversed(list(enumerate(train)))}
    rows = sorted(distinct.values())
    items = [train[row] for row in rows]
    _check(dataset, recipe, items)
    if recipe.selection == "stratified" or len(items) <= recipe.count:
        return draw(items, recipe.count, recipe.seed)
    if features is None:
        features = np.stack(list(in_threads(lambda item: _thumbnail(dataset, item, max_pixels), items)))
    elif len(features) != len(train):
        raise DataError(
            f"expected one row of features for each of {len(train)} training pictures, got {len(features)}",
            fix="pass features of shape (training pictures, any)",
        )
    else:
        features = features[rows]
    by_label: dict[int, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        by_label[item.label].append(index)
    shares = proportional({label: len(by_label[label]) for label in sorted(by_label)}, recipe.count)
    chosen: list[int] = []
    for label, share in shares.items():
        members = np.asarray(by_label[label])
        chosen += members[_spread(features[members].astype(np.float64), share)].tolist()
    return tuple(items[index] for index in sorted(chosen))


def _check(dataset: Dataset, recipe: CalibrationRecipe, items: list[Item]) -> None:
    if len(items) < FEWEST:
        raise DataError(
            f"only {len(items)} different training pictures to calibrate with; int8 ranges need at least {FEWEST}",
            fix="add pictures",
        )
    present = Counter(item.label for item in items)
    absent = [name for label, name in enumerate(dataset.classes) if not present[label]]
    if absent:
        raise DataError(f"train has no pictures of {', '.join(absent[:20])}", fix="add pictures of these classes")
    if recipe.count < len(dataset.classes):
        raise DataError(
            f"{recipe.count} calibration pictures cannot cover {len(dataset.classes)} classes",
            fix=f"use a calibration recipe with count = {max(len(dataset.classes), 300)} or more",
        )


def _spread(points: npt.NDArray[np.float64], count: int) -> list[int]:
    """Indices of ``count`` of the points (N, D), far from each other; ties go to the first."""
    chosen = [int(np.argmin(((points - points.mean(axis=0)) ** 2).sum(axis=1)))]
    nearest = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count:
        nearest[chosen[-1]] = -1.0
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return chosen


def _thumbnail(dataset: Dataset, item: Item, max_pixels: int) -> npt.NDArray[np.float64]:
    with dataset.open(item, max_pixels=max_pixels, draft=(64, 64)) as image:
        return prepare(image, _THUMBNAIL).astype(np.float64).reshape(-1) / 255.0
