"""How the loop trains, and what a training comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeopt.training_tables import Schedule, Unfreeze


@dataclass(frozen=True)
class LoopConfig:
    """How to train. ``lr`` is the head's; ``patience`` counts epochs without a better validation.

    ``ema_decay`` is a ceiling: short runs average over fewer steps; 0 switches averaging off. ``clip_grad`` bounds the
    gradient's norm; 0 does not. ``optimizer``, and ``schedule`` with what follows it, are those of
    :mod:`edgeopt.train.optimizer`; ``head_epochs``, which may have decimals, and ``unfreeze`` those of
    :mod:`edgeopt.train.freezing`. After ``batchnorm_epochs``, if stated, BatchNorms normalize with the statistics they
    have by then, and those stay. ``keep_initial`` lets the weights training starts from win (for models that are good
    already). ``time_seconds`` bounds the training: the schedule and the phases of freezing then go by the clock where
    that is ahead of the steps, and ``epochs`` are the most there are. ``select`` names the figure of val that picks the
    best epoch, or "last" takes the last one that, with ``keep_initial``, is not clearly worse than the start: among
    epochs of a rate that falls to nothing a few hundred pictures of val pick by chance. ``known_way`` is the
    precision and memory format that were fastest for such a network on this machine: where they can be chosen, no
    others are tried. A checkpoint is due ``checkpoint_seconds`` after the last.
    """

    epochs: int
    time_seconds: float | None = None
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float = 0.9
    warmup_epochs: float = 1.0
    min_lr_ratio: float = 0.01
    ema_decay: float = 0.99
    patience: int = 10
    clip_grad: float = 1.0
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    known_way: tuple[str, str] | None = None
    optimizer: str = "adamw"
    momentum: float | None = None
    schedule: Schedule = "cosine"
    lr_decay: float | None = None
    lr_step_epochs: float | None = None
    lr_patience: int | None = None
    head_epochs: float = 0.0
    unfreeze: Unfreeze = "all"
    batchnorm_epochs: float | None = None
    keep_initial: bool = False
    select: Literal["top1", "recall", "last"] = "top1"
    checkpoint_seconds: float = 30.0


@dataclass(frozen=True)
class Advice:
    """What to do when training cannot go on, in the keys that whoever trains has; ``{lr}`` is the learning rate."""

    diverged: str = "lower lr (now {lr:g}), lengthen warmup_epochs, or set precision to fp32"
    memory: str = "lower --image-size, take a smaller model, or lower train.batch_size"


OF_FINETUNING = Advice()


@dataclass(frozen=True)
class TrainResult:
    """``best_epoch`` counts from 1 (0: the initial weights); ``epochs`` were run in all, resumed ones included.

    ``seconds`` is the whole of training and validation; ``images_per_second`` that of training steps alone, batches
    included; ``gradient_parts`` is in how many parts batches were taken at last, for want of memory;
    ``estimate_seconds`` what was announced, or None when training only resumed.
    """

    best_top1: float
    best_epoch: int
    epochs: int
    seconds: float
    images_per_second: float
    gradient_parts: int
    precision: str
    memory_format: str
    estimate_seconds: float | None
