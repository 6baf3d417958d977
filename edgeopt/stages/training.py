"""The three uses of the one training loop: fine-tuning, recovery after pruning, quantization-aware training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from edgeopt.compress.quantize import freeze_batchnorm_statistics, is_quantized, quantizer_parameters
from edgeopt.config import AugmentConfig, CompressConfig, TrainConfig
from edgeopt.console import Console
from edgeopt.data.loader import TrainLoader
from edgeopt.metrics import top_k_accuracy
from edgeopt.preprocess import PreprocessSpec
from edgeopt.probability import calibration, fit_temperature
from edgeopt.stages.workspace import Workspace
from edgeopt.train.evaluate_torch import evaluator, logits
from edgeopt.train.loop import LoopConfig, TrainResult, train
from edgeopt.train.objectives import CrossEntropy, Distillation, Objective
from edgeopt.training_tables import Preset

_GRADIENT_BATCHES = 16  # for Taylor importance: enough to rank channels, seconds to compute
_SCALE_LR = 10.0  # quantizer scales learn this many times as fast as weights: a step of lr moves them by a fraction lr


@dataclass(frozen=True)
class TrainingPlan:
    """How one training goes: the loop's settings, the batches, and the loss (distilled where there is a teacher)."""

    title: str
    loop: LoopConfig
    label_smoothing: float = 0.0
    temperature: float = 3.0
    distill_weight: float = 0.9
    augment: Preset = "default"
    flip: bool = True
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)  # single values in place of the preset's
    batch_size: int = 32
    workers: int = 0
    epoch_share: float = 1.0  # of an epoch's steps that are taken: a training may be shorter than one epoch

    @classmethod
    def for_finetuning(cls, config: TrainConfig, augment: AugmentConfig | None = None) -> TrainingPlan:
        """As the recipe's ``[train]`` and ``[augment]`` say."""
        loop = LoopConfig(
            epochs=config.epochs,
            lr=config.lr,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            warmup_epochs=config.warmup_epochs,
            ema_decay=config.ema_decay,
            patience=config.patience,
            clip_grad=config.clip_grad,
            seed=config.seed,
            precision=config.precision,
            memory_format=config.memory_format,
        )
        return cls(
            "fine-tuning",
            loop,
            label_smoothing=config.label_smoothing,
            augment=config.augment,
            flip=config.flip,
            augmentation=augment or AugmentConfig(),
            batch_size=config.batch_size,
            workers=config.workers,
        )

    @classmethod
    def for_recovery(cls, config: CompressConfig, **like: Any) -> TrainingPlan:
        """After pruning: every layer was cut, so every layer learns at the same rate. ``like``: see :meth:`alike`."""
        loop = LoopConfig(epochs=config.recovery_epochs, lr=config.recovery_lr, layer_decay=1.0, keep_initial=True)
        return cls("recovery", loop, temperature=config.temperature, distill_weight=config.distill_weight).alike(**like)

    @classmethod
    def for_qat(cls, config: CompressConfig, *, share: float = 1.0, **like: Any) -> TrainingPlan:
        """Quantization-aware training from post-training ranges, which win when training does not improve on them."""
        wanted = config.epochs * share
        epochs = max(1, round(wanted)) if wanted else 0
        loop = LoopConfig(
            epochs=epochs, lr=config.lr, weight_decay=0.0, layer_decay=1.0, warmup_epochs=0.25, keep_initial=True
        )
        plan = cls(
            "int8 training",
            loop,
            temperature=config.temperature,
            distill_weight=config.distill_weight,
            epoch_share=min(1.0, wanted) if wanted else 1.0,
        )
        return plan.alike(**like)

    def alike(
        self,
        *,
        seed: int | None = None,
        precision: Literal["auto", "fp32", "bf16"] | None = None,
        memory_format: Literal["auto", "channels_last", "contiguous"] | None = None,
        **batches: Any,
    ) -> TrainingPlan:
        """This plan with augmentation, ``batch_size``, seed and way of computing of another training."""
        loop = replace(
            self.loop,
            seed=self.loop.seed if seed is None else seed,
            precision=precision or self.loop.precision,
            memory_format=memory_format or self.loop.memory_format,
        )
        return replace(self, loop=loop, **batches)

    def gradient_batches(self, workspace: Workspace, spec: PreprocessSpec) -> Iterator[tuple[Tensor, Tensor]]:
        """A few unaugmented training batches, the same at every call."""
        loader = replace(self, augment="none", augmentation=AugmentConfig())._loader(workspace, spec, workspace.console)
        return islice(loader(0), _GRADIENT_BATCHES)

    def _loader(self, workspace: Workspace, spec: PreprocessSpec, console: Console) -> TrainLoader:
        with console.task("decoding train") as progress:
            return TrainLoader(
                workspace.dataset,
                workspace.dataset.of("train"),
                spec,
                batch_size=self.batch_size,
                augment=self.augment,
                flip=self.flip,
                changes=self.augmentation,
                epochs=self.loop.epochs,
                seed=self.loop.seed,
                workers=self.workers,
                max_pixels=workspace.data.max_pixels,
                progress=progress,
            )


class _FrozenBatchNorm:
    """The objective with BatchNorm's statistics left alone: int8 ranges were set for them."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        freeze_batchnorm_statistics(model)
        return self._objective(model, images, targets)


def fit(
    plan: TrainingPlan,
    model: nn.Module,
    workspace: Workspace,
    spec: PreprocessSpec,
    *,
    folder: Path,
    console: Console,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place on the run's train pictures and return its val figures and what training took.

    A training interrupted in ``folder`` goes on from its checkpoint. Nothing but train and val is read.
    """
    if plan.loop.epochs == 0:
        return evaluate_val(model, workspace, spec)
    objective: Objective = CrossEntropy(plan.label_smoothing)
    if teacher is not None:
        objective = Distillation(teacher, temperature=plan.temperature, weight=plan.distill_weight)
    groups = []
    if is_quantized(model):
        objective = _FrozenBatchNorm(objective)
        groups = [{"params": quantizer_parameters(model), "lr": plan.loop.lr * _SCALE_LR, "weight_decay": 0.0}]
    loader = plan._loader(workspace, spec, console)
    validate = evaluator(workspace.prepared("val", spec), spec)
    steps = max(1, round(len(loader) * plan.epoch_share))
    with console.task(plan.title) as progress:
        result = train(
            model,
            batches=lambda epoch, first: islice(loader(epoch, first), steps - first),
            steps_per_epoch=steps,
            evaluate=validate,
            objective=objective,
            config=plan.loop,
            folder=folder,
            progress=progress,
            say=console.say,
            extra_groups=groups,
        )
    return {**evaluate_val(model, workspace, spec), "training": _figures(result)}


def _figures(result: TrainResult) -> dict[str, Any]:
    return {
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second, 1),
        "precision": result.precision,
        "memory_format": result.memory_format,
        "announced_seconds": result.estimate_seconds,
    }


def evaluate_val(model: nn.Module, workspace: Workspace, spec: PreprocessSpec) -> dict[str, Any]:
    """Figures of ``model`` on val: ``val_top1`` (0-1), ``val_loss`` (mean cross-entropy), and its ``temperature``."""
    pictures = workspace.prepared("val", spec)
    answers, labels = logits(model, pictures, spec), np.array(pictures.labels, np.int64)
    return {
        "val_top1": top_k_accuracy(answers, labels),
        "val_loss": calibration(answers, labels).nll,
        "temperature": fit_temperature(answers, labels),
    }
