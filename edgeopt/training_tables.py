"""The recipe's tables that say how a model is trained: ``[train]`` and ``[augment]``, and what contradicts itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Integers have bounds everywhere: TOML's have none, and those of thousands of digits cannot be written into a record.
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what every generator takes
Preset = Literal["none", "light", "default", "heavy"]


class Strict(BaseModel):
    """Frozen; unknown keys are errors, and so are NaN and infinity, which no record could hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AugmentConfig(Strict):
    """Single augmentations, each in place of what the preset ``train.augment`` says; None leaves the preset's.

    Strengths are the largest ones drawn. ``mixup`` and ``cutmix`` are the alpha of their Beta distribution (0: off);
    the last ``unmixed`` of the epochs goes without either.
    """

    crop: float | None = Field(None, gt=0, le=1)  # smallest share of the area a random crop keeps; 1: no crop
    rotation: float | None = Field(None, ge=0, le=180)  # degrees, either way
    scale: float | None = Field(None, ge=0, le=0.9)  # larger or smaller by this fraction
    shift: float | None = Field(None, ge=0, le=0.9)  # fraction of the width and of the height
    horizontal_flip: bool | None = None  # None: train.flip
    vertical_flip: bool | None = None
    brightness: float | None = Field(None, ge=0, le=1)
    contrast: float | None = Field(None, ge=0, le=1)
    saturation: float | None = Field(None, ge=0, le=1)
    hue: float | None = Field(None, ge=0, le=0.5)  # fraction of the colour circle
    policy: Literal["none", "trivial", "rand"] | None = None  # TrivialAugment or RandAugment
    operations: int | None = Field(None, ge=1, le=10)  # RandAugment's, one after the other; 2
    magnitude: int | None = Field(None, ge=0, le=30)  # RandAugment's; 9
    blur: float | None = Field(None, ge=0, le=20)  # sigma in pixels
    noise: float | None = Field(None, ge=0, le=1)  # standard deviation; white is 1
    erase: float | None = Field(None, ge=0, le=1)  # probability that a rectangle is erased
    mixup: float | None = Field(None, ge=0, le=100)
    cutmix: float | None = Field(None, ge=0, le=100)
    unmixed: float | None = Field(None, ge=0, le=1)


_NOTHING: dict[str, Any] = {
    "crop": 1.0, "rotation": 0.0, "scale": 0.0, "shift": 0.0, "horizontal_flip": False, "vertical_flip": False,
    "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "policy": "none", "operations": 2,
    "magnitude": 9, "blur": 0.0, "noise": 0.0, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0, "unmixed": 0.1,
}  # fmt: skip
_PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": {"crop": 0.8, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
    "default": {"crop": 0.5, "policy": "trivial"},
    "heavy": {"crop": 0.35, "policy": "trivial", "erase": 0.25, "mixup": 0.2, "cutmix": 1.0},
}
PRESETS = tuple(_PRESETS)


def augmentation(preset: Preset, changes: AugmentConfig | None = None, *, flip: bool = True) -> AugmentConfig:
    """The preset with ``changes``, every value stated; ``flip`` says whether presets but ``none`` mirror pictures."""
    stated = changes.model_dump(exclude_none=True) if changes else {}
    return AugmentConfig(**{**_NOTHING, "horizontal_flip": flip and preset != "none", **_PRESETS[preset], **stated})


class TrainConfig(Strict):
    """Fine-tuning. ``lr`` is AdamW's, for the head; the backbone's layers decay from it by ``layer_decay``."""

    epochs: int = Field(20, ge=1, le=10_000)
    batch_size: int = Field(32, ge=1, le=8192)
    lr: float = Field(1e-3, gt=0, le=10)
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float = Field(0.9, gt=0, le=1)
    warmup_epochs: float = Field(1.0, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    augment: Preset = "default"
    flip: bool = True
    ema_decay: float = Field(0.99, ge=0, lt=1)  # a ceiling: short runs average over fewer steps; 0 switches EMA off
    patience: int = Field(10, ge=1, le=10_000)
    clip_grad: float = Field(1.0, ge=0)
    seed: Seed = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"  # auto: the faster here, by a speed probe
    workers: int = Field(0, ge=0, le=256)


def contradictions(train: TrainConfig, augment: AugmentConfig) -> list[str]:
    """What in these tables cannot hold together, each with its reason, as ``key: reason``."""
    found = []
    if augmentation(train.augment, augment).policy != "rand":
        found += [
            f'augment.{name}: belongs to RandAugment; set augment.policy to "rand", or leave it out'
            for name in ("operations", "magnitude")
            if getattr(augment, name) is not None
        ]
    return found
