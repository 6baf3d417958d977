"""The emoji as a manifest with folds: one table of who is test, val and train, for every benchmark on them.

Emoji are FOLDER/CLASS/CODE-VENDOR.png of 64x64 pixels; both drawings of an emoji are one group. Groups are dealt into
three folds, each in turn the test set, an eighth of the other groups val.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

FOLDS, VAL_SHARE = 3, 8


def write_manifest(manifest: Path, fold: int, *, most: int | None) -> None:
    """Rows of path, label, split and group: ``fold`` is test, an eighth of what is left val.

    ``most`` keeps that many groups, for a trial.
    """
    paths = sorted(manifest.parent.glob("*/*.png"))
    groups = sorted({_group(path) for path in paths})
    order = np.random.default_rng(0).permutation(len(groups))[:most]
    place = {groups[index]: position for position, index in enumerate(order)}
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "split", "group"))
        for path in paths:
            position = place.get(_group(path))
            if position is None:
                continue
            val = position // FOLDS % VAL_SHARE == 0
            split = "test" if position % FOLDS == fold else "val" if val else "train"
            rows.writerow((path.relative_to(manifest.parent), path.parent.name, split, _group(path)))


def _group(path: Path) -> str:
    return f"{path.parent.name}/{path.stem.rsplit('-', 1)[0]}"
