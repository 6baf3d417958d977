"""The recipe's tables that say how a model is trained: ``[train]`` and ``[augment]``, and what contradicts itself."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from edgeopt.errors import did_you_mean
from edgeopt.registry import losses
from edgeopt.tables import Strict as Strict
from edgeopt.tables import Taught as Taught

#: Integers have bounds everywhere: TOML's have none, and those of thousands of digits cannot be written into a record.
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what every generator takes
Preset = Literal["none", "light", "default", "heavy"]
Schedule = Literal["cosine", "step", "one_cycle", "exponential", "plateau"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
Unfreeze = Literal["all", "gradual", "none"]
UNFREEZE: tuple[Unfreeze, ...] = get_args(Unfreeze)


_UNITS = {"h": 3600, "m": 60, "s": 1}


def seconds_of(time: str) -> int:
    """Seconds in a time such as ``90s``, ``20m``, ``1h30m``; raises ValueError for anything else."""
    found = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?", time)
    seconds = (
        sum(int(part or 0) * unit for part, unit in zip(found.groups(), _UNITS.values(), strict=True)) if found else 0
    )
    if seconds == 0:
        raise ValueError("no time; write 20m, 1h30m or 90s")
    return seconds


def _a_time(text: str) -> str:
    seconds_of(text)
    return text


Time = Annotated[str, AfterValidator(_a_time)]


class AugmentConfig(Strict):
    """Single augmentations, each in place of what the preset ``train.augment`` says; None leaves the preset's.

    Strengths are the largest ones drawn. ``mixup`` and ``cutmix`` are the alpha of their Beta distribution (0: off);
    the last ``unmixed`` of the epochs goes without either, of one epoch the last steps.
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


#: Learning rate and weight decay of optimizers that are not stated any. AdamW's 0.05 is taken off the weights; here
#: the decay joins the gradient (L2), and as much of it would be all that is learned.
RATES: dict[str, tuple[float, float]] = {
    "adam": (1e-3, 1e-5),
    "sgd": (0.03, 1e-4),
    "nesterov": (0.03, 1e-4),
    "momentum": (0.03, 1e-4),
    "rmsprop": (1e-4, 1e-5),
}


class TrainConfig(Taught):
    """Fine-tuning. ``lr`` is the head's; the backbone's layers decay from it by ``layer_decay``.

    ``"auto"`` finds the batch size by a speed and memory probe, the learning rate by a range test.
    """

    epochs: int = Field(20, ge=1, le=10_000)
    time: Time | None = None  # as 20m, 1h30m, 90s: bounds all of it, folds together; the schedule fits what is left
    batch_size: Annotated[int, Field(ge=1, le=8192)] | Literal["auto"] = 32
    optimizer: str = "adamw"  # adam, sgd (Nesterov), momentum (SGD without), rmsprop, or another of timm's
    momentum: float | None = Field(None, ge=0, lt=1)  # None: 0.9, where the optimizer has one
    lr: Annotated[float, Field(gt=0, le=10)] | Literal["auto"] = 1e-3  # of other optimizers than AdamW: see RATES
    schedule: Schedule = "cosine"
    lr_decay: float | None = Field(None, gt=0, lt=1)  # of step and plateau (0.1), and of exponential, an epoch
    lr_step_epochs: float | None = Field(None, gt=0)  # between two drops of step; None: a third of the epochs
    lr_patience: int | None = Field(None, ge=1, le=10_000)  # epochs without a better one before plateau drops; 3
    weight_decay: float = Field(0.05, ge=0)  # as lr
    layer_decay: float = Field(0.9, gt=0, le=1)
    warmup_epochs: float = Field(1.0, ge=0)
    head_epochs: float = Field(0.0, ge=0)  # the head alone is trained first; decimals are parts of an epoch
    unfreeze: Unfreeze = "all"  # then all layers, one more at a time from the head down, or none (a linear probe)
    l1: float = Field(0.0, ge=0, le=1)  # of all weights but norms and biases
    batchnorm: Literal["trained", "frozen"] = "trained"  # frozen: its statistics, gains and biases
    dropout: float | None = Field(None, ge=0, lt=1)  # None: the model's own, as is drop_path
    drop_path: float | None = Field(None, ge=0, lt=1)
    loss: str = "cross_entropy"
    loss_arguments: dict[str, bool | Whole | float | str] = Field(default_factory=dict)
    label_smoothing: float | None = Field(None, ge=0, lt=1)  # None: 0.1, and 0 for a loss of hard labels
    sampling: Literal["shuffled", "balanced"] = "shuffled"  # balanced: every class equally often
    select: Literal["auto", "top1", "recall"] = "auto"  # which figure of val picks the epoch; see selection
    augment: Preset = "default"
    flip: bool = True
    ema_decay: float = Field(0.99, ge=0, lt=1)  # a ceiling: short runs average over fewer steps; 0 switches EMA off
    patience: int = Field(10, ge=1, le=10_000)
    clip_grad: float = Field(1.0, ge=0)
    folds: int | None = Field(None, ge=2, le=100)  # cross-validation on train: so many trainings
    keep: Literal["best", "soup"] | None = None  # of the folds' models: the best on val (None too), or their soup
    seed: Seed = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"  # auto: the faster here, by a speed probe
    workers: int = Field(0, ge=0, le=256)

    @model_validator(mode="after")
    def _rates_of_the_optimizer(self) -> TrainConfig:
        """What is not stated is the optimizer's own; it counts as not stated still."""
        for name, value in zip(("lr", "weight_decay"), RATES.get(self.optimizer, ()), strict=False):
            if name not in self.model_fields_set:
                self.__dict__[name] = value
        return self

    @field_validator("batch_size", "lr", mode="wrap")
    @classmethod
    def _number_or_auto(cls, value: Any, handler: Any) -> Any:
        """One problem where pydantic would say one for each side of the union."""
        try:
            return handler(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ValueError(f'{reason[0].lower()}{reason[1:]}, or "auto"') from None

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        known = losses()
        if value not in known and not re.fullmatch(r"[\w.]+:\w+", value):
            raise ValueError(
                f"unknown loss{did_you_mean(value, known)}; use one of {', '.join(sorted(known))}, or module:attr"
            )
        return value


def selection(train: TrainConfig) -> Literal["top1", "recall"]:
    """The figure the best epoch is picked by: mean recall of the classes where imbalance is worked against."""
    if train.select != "auto":
        return train.select
    return "recall" if train.loss in ("weighted", "focal") or train.sampling == "balanced" else "top1"


def smoothing(train: TrainConfig, *, soft_targets: bool) -> float:
    """The label smoothing meant: the default is for losses that take soft labels."""
    return (0.1 if soft_targets else 0.0) if train.label_smoothing is None else train.label_smoothing


def contradictions(
    train: TrainConfig, augment: AugmentConfig, *, soft_targets: bool | None = None, random_weights: bool = False
) -> list[str]:
    """What in these tables cannot hold together, each with its reason, as ``key: reason``.

    ``soft_targets`` says whether the loss takes labels that are shares of classes; None where only a look at it tells.
    ``random_weights``: the model starts from random numbers, because that was stated.
    """
    if soft_targets is None:
        soft_targets = _SOFT_TARGETS.get(train.loss, True)
    hard = [] if soft_targets else _against_hard_labels(train, augment)
    return [
        *_against_policy(train, augment),
        *hard,
        *_against_loss(train),
        *_against_schedule(train),
        *_against_freezing(train, random_weights=random_weights),
        *_against_folds(train),
        *_against_teaching(train),
    ]


def _against_policy(train: TrainConfig, augment: AugmentConfig) -> list[str]:
    if augmentation(train.augment, augment).policy == "rand":
        return []
    return [
        f'augment.{name}: belongs to RandAugment; set augment.policy to "rand", or leave it out'
        for name in ("operations", "magnitude")
        if getattr(augment, name) is not None
    ]


def _against_hard_labels(train: TrainConfig, augment: AugmentConfig) -> list[str]:
    found, chosen = [], augmentation(train.augment, augment)
    hard = f"the loss {train.loss} takes hard labels"
    for name, title in (("mixup", "MixUp"), ("cutmix", "CutMix")):
        if getattr(chosen, name):
            where = f"augment.{name}" if getattr(augment, name) else f"train.augment {train.augment}"
            found.append(f"{where}: {title} makes labels that are shares of two classes, and {hard}; set it to 0")
    if train.label_smoothing:
        found.append(f"train.label_smoothing: makes labels soft, and {hard}; leave it out")
    return found


def _against_loss(train: TrainConfig) -> list[str]:
    weighs = train.loss == "weighted" or (train.loss == "focal" and train.loss_arguments.get("balanced", True))
    if train.sampling == "balanced" and weighs:
        return [f"train.sampling: balanced batches and the loss {train.loss} each undo the whole imbalance; keep one"]
    return []


def _against_folds(train: TrainConfig) -> list[str]:
    if train.keep is not None and train.folds is None:
        return ["train.keep: says which of the folds' models is kept, and there are none; set train.folds"]
    return []


def _against_teaching(train: TrainConfig) -> list[str]:
    names = ("distill", "temperature", "distill_weight")
    stated = [name for name in names if getattr(train, name) != TrainConfig.model_fields[name].default]
    if train.teacher is not None:
        return []
    return [f"train.{name}: says how a teacher is listened to, and there is none; set train.teacher" for name in stated]


def _against_schedule(train: TrainConfig) -> list[str]:
    found = []
    belongs = {"lr_decay": ("step", "exponential", "plateau"), "lr_step_epochs": ("step",), "lr_patience": ("plateau",)}
    for name, schedules in belongs.items():
        if getattr(train, name) is not None and train.schedule not in schedules:
            found.append(f"train.{name}: the schedule {train.schedule} has none; it belongs to {', '.join(schedules)}")
    if train.schedule == "plateau" and (train.lr_patience or 1) >= train.patience:
        found.append("train.lr_patience: training would end (train.patience) before the rate drops; make it smaller")
    if train.schedule == "plateau" and train.time is not None:
        found.append("train.time: the schedule plateau waits for val, so no time can be planned for; take another")
    if train.momentum is not None and train.optimizer in ("adam", "adamw"):
        found.append(f"train.momentum: {train.optimizer} has none; leave it out, or take sgd, momentum or rmsprop")
    if train.momentum == 0 and train.optimizer in ("sgd", "nesterov"):
        found.append('train.momentum: Nesterov\'s needs more than 0; take the optimizer "momentum" for plain SGD')
    return found


def _against_freezing(train: TrainConfig, *, random_weights: bool) -> list[str]:
    found, never = [], 'train.unfreeze "none" never trains the backbone'
    if train.unfreeze != "none":
        if train.head_epochs >= train.epochs:
            found.append(
                f"train.head_epochs: the head alone would be trained in all {train.epochs} epochs; lower it, or set "
                'train.unfreeze to "none"'
            )
        return found
    if random_weights:
        found.append(f"model.pretrained: without weights the backbone is random, and {never}; leave one of them out")
    if "layer_decay" in train.model_fields_set and train.layer_decay != 1:
        found.append(f"train.layer_decay: is the learning rate of the backbone's layers, and {never}; leave it out")
    if train.head_epochs:
        found.append(f"train.head_epochs: says when the backbone follows, and {never}; leave it out")
    if "batchnorm" in train.model_fields_set and train.batchnorm == "trained":
        found.append(f"train.batchnorm: its layers are the backbone's, and {never}; leave it out")
    return found


_SOFT_TARGETS = {"cross_entropy": True, "weighted": True, "focal": False}
