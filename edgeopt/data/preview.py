"""A grid of pictures as training sees them: a row a picture, first as evaluation sees it, then one column an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.loader import TrainLoader
from edgeopt.errors import ConfigError
from edgeopt.files import write_atomically
from edgeopt.picture_files import DEFAULT_MAX_PIXELS
from edgeopt.preprocess import PreprocessSpec, UInt8
from edgeopt.training_tables import AugmentConfig, Preset

_GAP = 2  # white pixels between pictures
ROWS, EPOCHS = 6, 7


def write_preview(
    path: Path,
    dataset: Dataset,
    spec: PreprocessSpec,
    *,
    augment: Preset,
    flip: bool,
    changes: AugmentConfig,
    epochs: int,
    seed: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> None:
    """Write the grid of up to 6 pictures of train and their first 7 epochs to the PNG ``path``."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"the preview {path} must be a .png file", fix="name it so: --augment-preview grid.png")
    items = _of_every_class(dataset.of("train"))
    rows = np.arange(len(items))

    def made(preset: Preset, changes: AugmentConfig, epoch: int) -> UInt8:
        loader = TrainLoader(
            dataset,
            items,
            spec,
            batch_size=len(items),
            augment=preset,
            flip=flip,
            changes=changes,
            epochs=epochs,
            seed=seed,
            max_pixels=max_pixels,
        )
        with torch.random.fork_rng(devices=[]):
            images, _ = loader.batch(epoch, 0, rows)
        return denormalized(images, spec)

    columns = [made("none", AugmentConfig(), 0)]
    columns += [made(augment, changes, epoch) for epoch in range(min(EPOCHS, epochs))]
    grid = _grid(columns)
    write_atomically(path, lambda temporary: Image.fromarray(grid).save(temporary, format="PNG"))


def denormalized(images: Tensor, spec: PreprocessSpec) -> UInt8:
    """uint8 (N, height, width, 3) of float32 images (N, 3, height, width) that ``spec`` normalized."""
    pixels = images.permute(0, 2, 3, 1).numpy() * np.asarray(spec.std, np.float32) + np.asarray(spec.mean, np.float32)
    column: UInt8 = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)
    return column


def batch_grid(images: Tensor, spec: PreprocessSpec) -> UInt8:
    """The first pictures of a batch as the network sees them, up to 4 x 4: uint8 (height, width, 3)."""
    columns = min(4, len(images))
    rows = min(4, len(images) // columns)
    pixels = denormalized(images[: rows * columns], spec)
    return _grid([pixels[column::columns] for column in range(columns)])


def _of_every_class(items: Sequence[Item]) -> list[Item]:
    """The first pictures of every class in turn, as many as there are rows."""
    seen: dict[int, int] = {}
    turns = []
    for item in items:
        seen[item.label] = seen.get(item.label, 0) + 1
        turns.append(((seen[item.label], item.label), item))
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])[:ROWS]]


def _grid(columns: Sequence[UInt8]) -> UInt8:
    count, height, width, _ = columns[0].shape
    step_y, step_x = height + _GAP, width + _GAP
    grid = np.full((count * step_y - _GAP, len(columns) * step_x - _GAP, 3), 255, np.uint8)
    for x, pictures in enumerate(columns):
        for y, picture in enumerate(pictures):
            grid[y * step_y : y * step_y + height, x * step_x : x * step_x + width] = picture
    return grid
