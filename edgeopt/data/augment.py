"""Training augmentation: torchvision v2 pipelines over RGB pictures that end at the preprocessing's size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from edgeopt.preprocess import PreprocessSpec, UInt8, prepare, to_rgb
from edgeopt.training_tables import AugmentConfig, Preset, augmentation

Augment = Callable[[Image.Image], UInt8]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

#: Pictures are kept this much larger than evaluation sees them, so that random crops lose no detail.
_MARGIN = 1.15
_LONGEST_ASPECT = 2.0
_LIGHT_CROP = 0.8


def make_augment(
    preset: Preset, spec: PreprocessSpec, *, flip: bool, changes: AugmentConfig | None = None
) -> Augment | None:
    """A random change of a picture made by :func:`cached_picture`, to uint8 RGB of ``spec.size``; None for no change.

    ``light``: a random crop of at least 80 % of the area, a horizontal flip when ``flip``, a little colour jitter.
    ``default``: a random crop of at least 50 %, the flip, TrivialAugment (Müller & Hutter 2021,
    https://arxiv.org/abs/2103.10158), which here shifts by a quarter of the picture at most and, when pictures may not
    be flipped because their orientation means something, rotates by at most 30 degrees instead of 135. ``heavy``: the
    same with crops down to 35 % and erased rectangles (Zhong et al. 2020, https://arxiv.org/abs/1708.04896).
    ``changes`` replace single values. Randomness comes from torch's default generator. Normalization is the caller's.
    """
    steps = _steps(augmentation(preset, changes, flip=flip), spec)
    return _Augment(v2.Compose(steps)) if steps else None


def make_mix(config: AugmentConfig, classes: int) -> Mix | None:
    """MixUp (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) or CutMix (Yun et al. 2019,
    https://arxiv.org/abs/1905.04899) of a batch, by chance when both are on; None when neither is.

    Takes float32 images (N, 3, height, width) and int64 classes (N,); the second becomes float32 (N, ``classes``).
    """
    ways = [
        make(alpha=a, num_classes=classes) for make, a in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix)) if a
    ]
    if not ways:
        return None
    mix: Mix = v2.RandomChoice(ways) if len(ways) > 1 else ways[0]
    return mix


def lighter(config: AugmentConfig) -> AugmentConfig:
    """What of an augmentation is near the pictures as they are: crops of at least 80 % of the area, and mirroring."""
    return AugmentConfig(
        crop=max(config.crop or 1.0, _LIGHT_CROP) if _crops(config) else 1.0,
        horizontal_flip=config.horizontal_flip,
        vertical_flip=config.vertical_flip,
    )


def _steps(config: AugmentConfig, spec: PreprocessSpec) -> list[nn.Module]:
    """Geometry, colour, then what spoils pixels."""
    interpolation = InterpolationMode[spec.interpolation.upper()]
    # Corners that a rotation uncovers get the colour that normalization takes to zero.
    fill = [round(255 * value) for value in spec.mean]
    steps: list[nn.Module] = []
    if _crops(config):
        crop, aspect = (config.crop, 1.0), spec.size[1] / spec.size[0]
        # About the shape the model sees: of another one, pictures would be more distorted than evaluation's ever are.
        ratio = (aspect * 5 / 6, aspect * 6 / 5)
        steps.append(v2.RandomResizedCrop(spec.size, scale=crop, ratio=ratio, interpolation=interpolation))
    if config.rotation or config.scale or config.shift:
        steps.append(
            v2.RandomAffine(
                degrees=config.rotation,
                translate=(config.shift, config.shift) if config.shift else None,
                scale=(1 - config.scale, 1 + config.scale) if config.scale else None,
                interpolation=InterpolationMode.BILINEAR,
                fill=fill,
            )
        )
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.vertical_flip:
        steps.append(v2.RandomVerticalFlip())
    if config.policy == "trivial":
        steps.append(_TrivialAugment(fill=fill, largest_rotation=135.0 if config.horizontal_flip else 30.0))
    elif config.policy == "rand":
        steps.append(
            v2.RandAugment(config.operations, config.magnitude, interpolation=InterpolationMode.BILINEAR, fill=fill)
        )
    jitter = {name: getattr(config, name) for name in ("brightness", "contrast", "saturation", "hue")}
    if any(jitter.values()):
        steps.append(v2.ColorJitter(**jitter))
    if config.blur:
        reach = 2 * math.ceil(2 * config.blur) + 1
        steps.append(v2.GaussianBlur(reach, sigma=(min(0.1, config.blur), config.blur)))
    if config.noise or config.erase:
        steps.append(v2.PILToTensor())
        if config.noise:
            steps.append(_Noise(config.noise))
        if config.erase:
            steps.append(v2.RandomErasing(config.erase, scale=(0.02, 0.25), value=fill))
        steps.append(_ChannelsLast())
    return steps


def _crops(config: AugmentConfig) -> bool:
    return config.crop is not None and config.crop < 1


class _Augment:
    """What a pipeline makes of a picture, as an array; unlike a closure it can be sent to another process."""

    def __init__(self, pipeline: Callable[[Image.Image], Any]) -> None:
        self._pipeline = pipeline

    def __call__(self, image: Image.Image) -> UInt8:
        return np.asarray(self._pipeline(image))


class _Noise(nn.Module):
    """Gaussian noise of a strength drawn up to ``largest``, on uint8 (3, height, width)."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self._largest = largest

    def forward(self, picture: Tensor) -> Tensor:
        noisy: Tensor = v2.functional.gaussian_noise(picture, sigma=self._largest * float(torch.rand(())))
        return noisy


class _ChannelsLast(nn.Module):
    """(3, height, width) to (height, width, 3)."""

    def forward(self, picture: Tensor) -> Tensor:
        return picture.permute(1, 2, 0)


class _TrivialAugment(v2.TrivialAugmentWide):  # type: ignore[misc]
    """torchvision's, with bounds that suit the picture: its 32 pixels of shift are half of a picture of 64."""

    def __init__(self, *, fill: list[int], largest_rotation: float) -> None:
        super().__init__(interpolation=InterpolationMode.BILINEAR, fill=fill)
        self._largest_rotation = largest_rotation

    @property
    def _AUGMENTATION_SPACE(self) -> dict[str, Any]:
        """Made when asked for: torchvision's has lambdas, which cannot be sent to a process that is not forked."""
        changed = {name: (self._shift, True) for name in ("TranslateX", "TranslateY")}
        return {**v2.TrivialAugmentWide._AUGMENTATION_SPACE, **changed, "Rotate": (self._rotation, True)}

    def _shift(self, bins: int, height: int, width: int) -> Tensor:
        return torch.linspace(0.0, min(32.0, min(height, width) / 4), bins)

    def _rotation(self, bins: int, height: int, width: int) -> Tensor:
        return torch.linspace(0.0, self._largest_rotation, bins)


def cached_key(spec: PreprocessSpec, preset: Preset, changes: AugmentConfig | None = None) -> str:
    """What :func:`cached_picture` depends on but for the picture."""
    return f"{spec.key}-{'cropped' if _crops(augmentation(preset, changes)) else 'plain'}"


def cached_picture(
    image: Image.Image, spec: PreprocessSpec, preset: Preset, changes: AugmentConfig | None = None
) -> UInt8:
    """uint8 (height, width, 3): what of a decoded picture training needs to keep.

    Without random crops (as in the preset ``none``) exactly what evaluation sees; otherwise the whole picture (of very
    long ones the middle) scaled so that crops of it are not enlarged, squashed or letterboxed as ``spec`` says.
    """
    if not _crops(augmentation(preset, changes)):
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
