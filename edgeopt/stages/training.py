"""The three uses of the one training loop: fine-tuning, recovery after pruning, quantization-aware training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from torch import Tensor, nn

from edgeopt import records
from edgeopt.compress.quantize import is_quantized, quantizer_parameters
from edgeopt.config import AugmentConfig, CompressConfig, TrainConfig
from edgeopt.console import Console
from edgeopt.data.loader import TrainLoader
from edgeopt.data.preview import batch_grid
from edgeopt.files import write_json
from edgeopt.metrics import Float, Int64, top_k_accuracy
from edgeopt.preprocess import PreprocessSpec
from edgeopt.probability import calibration, fit_temperature
from edgeopt.stages.half_made import BatchSizeRecord
from edgeopt.stages.objective import objective_of
from edgeopt.stages.teachers import Teacher
from edgeopt.stages.workspace import Workspace
from edgeopt.tables import Distill
from edgeopt.train import clock
from edgeopt.train.batch_size import SMALLEST, find_batch_size
from edgeopt.train.config import OF_FINETUNING, Advice
from edgeopt.train.evaluate_torch import evaluator, logits
from edgeopt.train.features import ADAPTER
from edgeopt.train.freezing import fixed_batchnorms
from edgeopt.train.layer_matching import Matched
from edgeopt.train.loop import EpochEnd, LoopConfig, TrainResult, train
from edgeopt.train.losses import takes_soft_targets
from edgeopt.train.lr_range import STEPS, find_lr
from edgeopt.train.objectives import Objective
from edgeopt.train.probe import candidates
from edgeopt.train.processes import ALONE, Processes, divided, training_device
from edgeopt.training_tables import Preset, seconds_of, selection, smoothing

_LR_BEFORE_TEST = 1e-3
_GRADIENT_BATCHES = 16  # for Taylor importance: enough to rank channels, seconds to compute
#: What can be done in ``[compress]``, which takes batches and precision from how the model was fine-tuned.
_DIVERGED = "lower {key} of [compress] (now {{lr:g}}), as in --set {key}={example}"
NO_MEMORY = (
    "free memory, or compress a model that was fine-tuned with a smaller --batch-size or --image-size, or is smaller"
)
_ADAPTER_LR = 1e-3  # it may start from random numbers, whatever the rate of the student's fine-tuning


@dataclass(frozen=True)
class TrainingPlan:
    """How one training goes: the loop's settings, the batches, and the loss (distilled where there is a teacher)."""

    title: str
    loop: LoopConfig
    loss: str = "cross_entropy"
    loss_arguments: dict[str, Any] = field(default_factory=dict)
    label_smoothing: float = 0.0
    l1: float = 0.0
    freeze_batchnorm: bool = False
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    distill: Distill = "hinton"
    temperature: float | None = 3.0  # of the answers; features have none
    distill_weight: float = 0.9
    augment: Preset = "default"
    flip: bool = True
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)  # single values in place of the preset's
    light_end: float = 0.0  # of the epochs, the last ones: only crops and mirroring
    scale_lr: float = 10.0  # of quantizers' scales, in learning rates
    match_weight: float = 0.0  # of layers' maps, which are to be those of the network that was cut
    batch_size: int | Literal["auto"] = 32
    range_test: bool = False  # finds loop.lr
    workers: int = 0
    epoch_share: float = 1.0  # of an epoch's steps that are taken: a training may be shorter than one epoch
    advice: Advice = OF_FINETUNING
    begun: float | None = None  # when loop.time_seconds began, by the clock; None: when its fitting does

    @classmethod
    def for_finetuning(cls, config: TrainConfig, augment: AugmentConfig | None = None) -> TrainingPlan:
        """As the recipe's ``[train]`` and ``[augment]`` say."""
        loop = LoopConfig(
            epochs=config.epochs,
            time_seconds=None if config.time is None else seconds_of(config.time),
            lr=_LR_BEFORE_TEST if config.lr == "auto" else config.lr,
            optimizer=config.optimizer,
            momentum=config.momentum,
            schedule=config.schedule,
            lr_decay=config.lr_decay,
            lr_step_epochs=config.lr_step_epochs,
            lr_patience=config.lr_patience,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            warmup_epochs=config.warmup_epochs,
            head_epochs=config.head_epochs,
            unfreeze=config.unfreeze,
            ema_decay=config.ema_decay,
            patience=config.patience,
            clip_grad=config.clip_grad,
            seed=config.seed,
            precision=config.precision,
            memory_format=config.memory_format,
            select=selection(config),
        )
        return cls(
            "fine-tuning",
            loop,
            loss=config.loss,
            loss_arguments=dict(config.loss_arguments),
            label_smoothing=smoothing(config, soft_targets=takes_soft_targets(config.loss)),
            l1=config.l1,
            freeze_batchnorm=config.batchnorm == "frozen",
            sampling=config.sampling,
            augment=config.augment,
            flip=config.flip,
            augmentation=augment or AugmentConfig(),
            batch_size=config.batch_size,
            range_test=config.lr == "auto",
            workers=config.workers,
            **config.lesson(),
        )

    @classmethod
    def for_recovery(cls, config: CompressConfig, **like: Any) -> TrainingPlan:
        """After pruning: every layer was cut, so every layer learns at the same rate. ``like``: see :meth:`alike`."""
        loop = LoopConfig(
            epochs=config.recovery_epochs, lr=config.recovery_lr, layer_decay=1.0, keep_initial=True, select="last"
        )
        advice = Advice(_DIVERGED.format(key="recovery_lr", example="0.0001"), NO_MEMORY)
        plan = cls("recovery", loop, match_weight=config.match_weight, **config.lesson(), advice=advice)
        return plan.alike(**like)

    @classmethod
    def for_qat(cls, config: CompressConfig, *, share: float = 1.0, **like: Any) -> TrainingPlan:
        """Quantization-aware training from post-training ranges, which stay when training is clearly worse.

        BatchNorm's statistics are frozen throughout unless stated: the ranges were set for them, and with those of
        batches the student first moves away from its teacher (benchmarks/compression/qat_batchnorm.json).
        """
        wanted = config.epochs * share
        epochs = max(1, round(wanted)) if wanted else 0
        loop = LoopConfig(
            epochs=epochs,
            lr=config.lr,
            weight_decay=0.0,
            layer_decay=1.0,
            warmup_epochs=0.25,
            ema_decay=config.ema_decay,
            batchnorm_epochs=config.batchnorm_epochs,
            keep_initial=True,
            select="last",
        )
        plan = cls(
            "int8 training",
            loop,
            **config.lesson(),
            epoch_share=min(1.0, wanted) if wanted else 1.0,
            light_end=config.light_end,
            scale_lr=config.scale_lr,
            advice=Advice(_DIVERGED.format(key="lr", example="0.00001"), NO_MEMORY),
        )
        return plan.alike(**like)

    def alike(
        self,
        *,
        seed: int | None = None,
        precision: Literal["auto", "fp32", "bf16"] | None = None,
        memory_format: Literal["auto", "channels_last", "contiguous"] | None = None,
        known_way: tuple[str, str] | None = None,
        **batches: Any,
    ) -> TrainingPlan:
        """This plan with augmentation, batches, seed and way of computing of another training.

        Its own seed is made of that one: with the same, it would be shown the very views, in the very batches, that the
        teacher was trained on and is surest about.
        """
        loop = replace(
            self.loop,
            seed=_another_seed(self.loop.seed if seed is None else seed, self.title),
            precision=precision or self.loop.precision,
            memory_format=memory_format or self.loop.memory_format,
            known_way=known_way,
        )
        return replace(self, loop=loop, **batches)

    def again(self, turn: int) -> TrainingPlan:
        """This plan for a network that was trained by it before, ``turn`` times: with views that it did not see."""
        return replace(self, loop=replace(self.loop, seed=_another_seed(self.loop.seed, str(turn))))

    def gradient_batches(self, workspace: Workspace, spec: PreprocessSpec) -> Iterator[tuple[Tensor, Tensor]]:
        """A few unaugmented training batches, the same at every call."""
        plain = replace(self, augment="none", augmentation=AugmentConfig())
        loader = plain.loader(workspace, spec, workspace.console, batch_size=_size(self))
        return islice(loader(0), _GRADIENT_BATCHES)

    def loader(self, workspace: Workspace, spec: PreprocessSpec, console: Console, *, batch_size: int) -> TrainLoader:
        """The run's train pictures in batches."""
        with console.task("decoding train") as progress:
            return TrainLoader(
                workspace.dataset,
                workspace.dataset.of("train"),
                spec,
                batch_size=batch_size,
                augment=self.augment,
                flip=self.flip,
                changes=self.augmentation,
                epochs=self.loop.epochs,
                light_end=self.light_end,
                sampling=self.sampling,
                seed=self.loop.seed,
                workers=self.workers,
                cache_folder=workspace.run.path,
                max_pixels=workspace.data.max_pixels,
                progress=progress,
                say=console.say,
                shelf=workspace.shelf,
            )


def _another_seed(seed: int, what: str) -> int:
    """One that ``what`` and the run's seed tell."""
    return int(np.random.SeedSequence([seed, crc32(what.encode())]).generate_state(1)[0])


def fit(
    plan: TrainingPlan,
    model: nn.Module,
    workspace: Workspace,
    spec: PreprocessSpec,
    *,
    folder: Path,
    console: Console,
    teacher: Teacher | None = None,
    epoch_end: EpochEnd | None = None,
    processes: Processes = ALONE,
    matched: Matched | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place on the run's train pictures and return its val figures and what training took.

    A training interrupted in ``folder`` goes on from its checkpoint. Nothing but train and val is read. ``epoch_end``
    is told of each epoch; see :func:`edgeopt.train.loop.train`. Each of ``processes`` calls this; the figures are for
    the first alone. ``matched`` is what ``model`` was cut from.
    """
    if plan.loop.epochs == 0:
        return evaluate_val(model, workspace, spec)
    plan = replace(plan, begun=clock.now() if plan.begun is None else plan.begun)  # decoding and probes count too
    with ExitStack() as attached:
        loader = plan.loader(workspace, spec, console, batch_size=_size(plan))
        objective = objective_of(
            plan,
            model,
            workspace,
            spec,
            teacher=teacher,
            loader=loader,
            processes=processes,
            attached=attached,
            matched=matched,
        )
        result, chosen = _trained(
            plan,
            model,
            workspace,
            spec,
            loader,
            objective,
            folder=folder,
            console=console,
            epoch_end=epoch_end,
            processes=processes,
        )
    if not processes.leads:
        return {}
    return {**evaluate_val(model, workspace, spec), "training": {**chosen, **_figures(result)}}


def _trained(
    plan: TrainingPlan,
    model: nn.Module,
    workspace: Workspace,
    spec: PreprocessSpec,
    loader: TrainLoader,
    objective: Objective,
    *,
    folder: Path,
    console: Console,
    epoch_end: EpochEnd | None,
    processes: Processes,
) -> tuple[TrainResult, dict[str, Any]]:
    """Find what is to be found first, and train; the result, and what was chosen."""
    if plan.batch_size == "auto":
        size = processes.led(lambda: _found_batch_size(model, loader, objective, plan, folder=folder, console=console))
        loader.batch_size = divided(size, processes.count)
    if plan.range_test:
        lr = processes.led(lambda: _found_lr(model, loader, objective, plan, folder=folder, console=console))
        plan = replace(plan, loop=replace(plan.loop, lr=lr))
    loader.share = processes.rank, processes.count
    processes.led(lambda: len(workspace.prepared("val", spec)))  # written once, then read by all
    validate = evaluator(workspace.prepared("val", spec), spec, processes=processes)
    steps = loader.steps = max(1, round(len(loader) * plan.epoch_share))
    frozen = fixed_batchnorms(model) if plan.freeze_batchnorm else nullcontext()
    groups = own_rates(plan, model)
    with console.task(plan.title) as progress, frozen:
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
            planned=lambda epochs: setattr(loader, "epochs", epochs),
            draw=lambda images: batch_grid(images, spec),
            epoch_end=epoch_end,
            processes=processes,
            advice=plan.advice,
            begun=plan.begun,
        )
    return result, {"batch_size": loader.batch_size, "lr": plan.loop.lr, "processes": processes.count}


def own_rates(plan: TrainingPlan, model: nn.Module) -> list[dict[str, Any]]:
    """Parameters that do not learn at the layers' rates: quantizers' scales, and an adapter of features."""
    groups = []
    if is_quantized(model):
        groups.append({"params": quantizer_parameters(model), "lr": plan.loop.lr * plan.scale_lr, "weight_decay": 0.0})
    if adapter := [parameter for name, parameter in model.named_parameters() if f"{ADAPTER}." in name]:
        groups.append({"params": adapter, "lr": max(plan.loop.lr, _ADAPTER_LR)})
    return groups


def _size(plan: TrainingPlan) -> int:
    """The batch size, or what to begin with until it is found."""
    return SMALLEST if plan.batch_size == "auto" else plan.batch_size


def _found_batch_size(
    model: nn.Module, loader: TrainLoader, objective: Objective, plan: TrainingPlan, *, folder: Path, console: Console
) -> int:
    """By the probe, or what the probe of this training found before it was interrupted: a probe's times vary."""
    path = folder / "batch_size.json"
    if not path.is_file():
        with console.task("finding the batch size"):
            images, targets = next(iter(loader(0)))
            device = training_device()
            (choice, *_) = candidates(plan.loop.precision, device, plan.loop.memory_format, model=model)
            found = find_batch_size(
                model, images, targets, objective, choice, pictures=len(loader.labels), device=device
            )
        write_json(path, found.to_json())
    size = int(records.read(BatchSizeRecord, path)["size"])
    console.say(f"batch size: {size} (batch_size.json)")
    return size


def _found_lr(
    model: nn.Module, loader: TrainLoader, objective: Objective, plan: TrainingPlan, *, folder: Path, console: Console
) -> float:
    """By the range test, or what it found before this training was interrupted."""
    path = folder / "lr_range.json"
    if not path.is_file():
        with console.task("finding the learning rate"):
            batches = (batch for epoch in range(STEPS) for batch in loader(epoch))
            write_json(path, find_lr(model, batches, objective, plan.loop, device=training_device()).to_json())
    lr = float(records.read(records.LrRangeRecord, path)["lr"])
    console.say(f"learning rate: {lr:.2g} (lr_range.json)")
    return lr


def _figures(result: TrainResult) -> dict[str, Any]:
    return {
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second, 1),
        "precision": result.precision,
        "memory_format": result.memory_format,
        "gradient_parts": result.gradient_parts,
        "announced_seconds": result.estimate_seconds,
    }


def evaluate_val(model: nn.Module, workspace: Workspace, spec: PreprocessSpec) -> dict[str, Any]:
    """Figures of ``model`` on val: ``val_top1`` (0-1), ``val_loss`` (mean cross-entropy), and its ``temperature``."""
    pictures = workspace.prepared("val", spec)
    return val_figures(logits(model, pictures, spec), np.array(pictures.labels, np.int64))


def val_figures(answers: Float, labels: Int64) -> dict[str, Any]:
    """The same of logits (N, classes) and labels (N,)."""
    return {
        "val_top1": top_k_accuracy(answers, labels),
        "val_loss": calibration(answers, labels).nll,
        "temperature": fit_temperature(answers, labels),
    }
