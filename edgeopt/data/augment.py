"""Training augmentation: torchvision v2 pipelines over RGB pictures that end at the preprocessing's size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from edgeopt.preprocess import PreprocessSpec, UInt8, prepare, to_rgb

Preset = Literal["none", "light", "default"]
Augment = Callable[[Image.Image], Image.Image]

#: Pictures are kept this much larger than evaluation sees them, so that random crops lose no detail.
_MARGIN = 1.15
#: The smallest share of the picture's area a random crop keeps.
_SMALLEST_CROP = {"light": 0.8, "default": 0.5}
_LONGEST_ASPECT = 2.0


def make_augment(preset: Preset, spec: PreprocessSpec, *, flip: bool) -> Augment | None:
    """A random change of a picture made by :func:`cached_picture`, to RGB of ``spec.size``; None for the preset none.

    ``light``: a random crop of at least 80 % of the area, a horizontal flip when ``flip``, a little colour jitter.
    ``default``: a random crop of at least 50 %, the flip, TrivialAugment (Müller & Hutter 2021,
    https://arxiv.org/abs/2103.10158), which here shifts by a quarter of the picture at most and, when pictures may not
    be flipped because their orientation means something, rotates by at most 30 degrees instead of 135. Randomness
    comes from torch's default generator. Normalization is the caller's.
    """
    if preset == "none":
        return None
    smallest = _SMALLEST_CROP[preset]
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(
            spec.size,
            scale=(smallest, 1.0),
            ratio=(5 / 6, 6 / 5),
            interpolation=InterpolationMode[spec.interpolation.upper()],
        )
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if preset == "light":
        steps.append(v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2))
    else:
        steps.append(_TrivialAugment(spec, largest_rotation=135.0 if flip else 30.0))
    augment: Augment = v2.Compose(steps)
    return augment


class _TrivialAugment(v2.TrivialAugmentWide):  # type: ignore[misc]
    """torchvision's, with bounds that suit the picture: its 32 pixels of shift are half of a picture of 64."""

    def __init__(self, spec: PreprocessSpec, *, largest_rotation: float) -> None:
        # Corners that a rotation uncovers get the colour that normalization takes to zero.
        super().__init__(interpolation=InterpolationMode.BILINEAR, fill=[round(255 * value) for value in spec.mean])

        def shift(bins: int, height: int, width: int) -> torch.Tensor:
            return torch.linspace(0.0, min(32.0, min(height, width) / 4), bins)

        def rotation(bins: int, height: int, width: int) -> torch.Tensor:
            return torch.linspace(0.0, largest_rotation, bins)

        changed = {"TranslateX": (shift, True), "TranslateY": (shift, True), "Rotate": (rotation, True)}
        self._AUGMENTATION_SPACE = {**v2.TrivialAugmentWide._AUGMENTATION_SPACE, **changed}


def cached_picture(image: Image.Image, spec: PreprocessSpec, preset: Preset) -> UInt8:
    """uint8 (height, width, 3): what of a decoded picture training needs to keep.

    For the preset ``none`` exactly what evaluation sees; otherwise the whole picture (of very long ones the middle)
    scaled so that random crops of it are not enlarged, squashed or letterboxed as ``spec`` says.
    """
    if preset == "none":
        return prepare(image, spec)
    height, width = (math.ceil(side / spec.crop_pct * _MARGIN) for side in spec.size)
    if spec.resize != "crop":
        height, width = (math.ceil(side * _MARGIN) for side in spec.size)
        return prepare(image, spec.model_copy(update={"size": (height, width)}))
    image = to_rgb(image, spec.background)
    scale = max(height / image.height, width / image.width)
    kept = (
        min(round(image.width * scale), round(width * _LONGEST_ASPECT)),
        min(round(image.height * scale), round(height * _LONGEST_ASPECT)),
    )
    whole = spec.model_copy(update={"size": (max(kept[1], height), max(kept[0], width)), "crop_pct": 1.0})
    return prepare(image, whole)
