"""Smaller variants of the trained model: channels pruned and recovered, then int8 by PTQ and distilled QAT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt import environment
from edgeopt.compress.prune import prune
from edgeopt.compress.quantize import quantize, quantizer_config, remove_quantizers
from edgeopt.config import (
    AugmentConfig,
    CalibrationRecipe,
    CompressConfig,
    TrainConfig,
    load_calibration,
    load_target,
    origins,
    validate,
)
from edgeopt.console import Console, Silent
from edgeopt.errors import ConfigError
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import load_backend
from edgeopt.run import Run, Stage, stage_key
from edgeopt.schemes import SCHEMES, get_scheme
from edgeopt.stages.export import export
from edgeopt.stages.training import TrainingPlan, evaluate_val, fit
from edgeopt.stages.variants import Variant, commit_variant, open_variant
from edgeopt.stages.voters import require_teacher, teacher_module
from edgeopt.stages.workspace import Workspace, open_workspace
from edgeopt.training_tables import selection

VERSION = 1
_CALIBRATION_BATCH = 16
_SHORT_QAT = 0.34  # of the epochs, when the weights come from a trained int8 variant and only the ranges are new


@dataclass(frozen=True)
class _Job:
    """What every pass of one call shares."""

    workspace: Workspace
    config: CompressConfig
    start: Variant
    targets: tuple[str, ...]
    round_to: int
    force: bool
    console: Console

    @property
    def run(self) -> Run:
        return self.workspace.run


def compress(
    run: Run,
    config: CompressConfig | None = None,
    *,
    targets: Sequence[str] = (),
    variant: str | None = None,
    data: str | None = None,
    force: bool = False,
    console: Console | None = None,
) -> list[Variant]:
    """Make the variants ``config`` asks for from ``variant`` (default: the original).

    What they learn from is that variant, or ``config.teacher``: another float variant of the run, or an ensemble.
    ``targets`` decide which int8 schemes are made; without them: the one this machine's CPU runs exactly, in full, and
    s8a8w for TensorRT from its weights. All are exported. Raises ModelError, TrainingError, DataError, ConfigError.
    """
    console, config = console or Silent(), config or CompressConfig()
    if not config.int8 and config.prune is None:
        raise ConfigError("nothing to compress", fix="ask for --int8, --prune F, or both")
    start = open_variant(run, variant or run.original())
    if start.architecture.scheme is not None:
        raise ConfigError(f"{start.name} is int8 already", fix="start from a float variant")
    if config.teacher is not None:
        require_teacher(run, config.teacher)
    load_calibration(config.calibration)  # a misspelt name is said now, not after pruning
    workspace = open_workspace(run, data=data, console=console)
    profiles = [load_target(name) for name in targets]
    round_to = max((profile.round_to for profile in profiles), default=8)
    job = _Job(workspace, config, start, tuple(targets), round_to, force, console)
    with run.lock():
        made = []
        source = start
        if config.prune is not None:
            source = _pruned(job, config.prune)
            made.append(source)
        if config.int8:
            made += _quantized(job, source, _schemes(config, targets))
        # With int8 on top, the pruned float model is a step on the way; `export --variant` exports it all the same.
        results = [item.name for item in made if item.record.get("scheme") or not config.int8]
        export(run, variants=[start.name, *results], data=data, console=console)
    return made


def _schemes(config: CompressConfig, targets: Sequence[str]) -> tuple[str, ...]:
    """The schemes to make, those with unsigned activations first: they are trained in full."""
    wanted = list(config.schemes)
    for name in targets:
        profile = load_target(name)
        if profile.precision == "int8":
            wanted.append(profile.scheme or load_backend(profile.backend).schemes()[0])
    if not wanted:
        wanted = ["u8a8w" if environment.has_int8_dot() else "u8a7w", "s8a8w"]
    return tuple(name for name in SCHEMES if name in wanted)


def wants_int8_outputs(config: CompressConfig, scheme: str, targets: Sequence[str]) -> bool:
    """Whether convolutions before swish, GELU and the like get int8 outputs: ONNX Runtime runs them in float without.

    OpenVINO and TensorRT do not need them, and OpenVINO is slower with them (see ``compress.quantize.quantize``).
    """
    if config.int8_outputs is not None:
        return config.int8_outputs
    backends = {load_target(name).backend for name in targets}
    return not get_scheme(scheme).activation_signed and (not backends or "onnxruntime" in backends)


def _origin_of_schemes(job: _Job) -> str:
    if job.config.schemes:
        return origins(job.config, {"schemes": None})["schemes"]
    return "target" if job.targets else "this machine's CPU, and TensorRT"


def _stage(job: _Job, name: str, inputs: Mapping[str, str], config: Mapping[str, Any]) -> Stage:
    """The folder of one pass: its training resumes, and it is replaced once its parent was made again."""
    return job.run.stage(
        "host",
        name,
        record="stage.json",
        key=stage_key(inputs=inputs, config=config, version=VERSION),
        force=job.force,
        resumes=True,
        outdated=job.run.outdated,
    )


def _pruned(job: _Job, fraction: float) -> Variant:
    inputs = _inputs(job, job.start)
    config = {
        **job.config.model_dump(include={"prune", "importance", "recovery_epochs", "recovery_lr"}),
        **job.config.model_dump(include={"temperature", "distill_weight"}),
        "round_to": job.round_to,
    }
    name = f"{job.start.name}-prune{round(fraction * 100):02d}"
    stage = _stage(job, name, inputs, config)
    if stage.done:
        return Variant(job.run, stage.name, stage.skipped(job.console), skipped=True)
    spec = job.start.preprocess
    start = job.start.load()
    plan = TrainingPlan.for_recovery(job.config, **_recipe(job))
    with job.console.task(f"pruning {fraction:.0%} of the MACs"):
        result = prune(
            start,
            fraction=fraction,
            example=torch.zeros(1, *spec.input_shape),
            round_to=job.round_to,
            importance=job.config.importance,
            gradient_batches=plan.gradient_batches(job.workspace, spec) if job.config.importance == "taylor" else None,
        )
    job.console.say(
        f"pruned: {result.macs_before / 1e6:.0f} to {result.macs_after / 1e6:.0f} M MACs, "
        f"{result.parameters_before / 1e6:.2f} to {result.parameters_after / 1e6:.2f} M parameters"
    )
    teacher = start if job.config.teacher is None else _teacher(job, spec)
    metrics = fit(plan, result.model, job.workspace, spec, folder=stage.folder, console=job.console, teacher=teacher)
    return commit_variant(
        stage,
        result.model,
        job.start.architecture.pruned(result.history),
        spec,
        parent=job.start.name,
        stage_name="prune",
        config=config,
        origin={**origins(job.config, config), "round_to": "target" if job.targets else "default"},
        inputs=inputs,
        metrics=metrics,
        teacher=job.config.teacher or job.start.name,
        pruning={
            "macs_before": result.macs_before,
            "macs_after": result.macs_after,
            "parameters_before": result.parameters_before,
            "parameters_after": result.parameters_after,
            "widths": {layer: list(pair) for layer, pair in result.widths.items()},
            "untouched": dict(result.untouched),
        },
    )


def _quantized(job: _Job, source: Variant, schemes: Sequence[str]) -> Iterator[Variant]:
    trained: Variant | None = None
    for scheme in schemes:
        trained_first = trained if trained is not None and scheme == "s8a8w" else None
        variant = _quantize_one(job, source, scheme, trained_first)
        trained = trained or variant
        yield variant


def _quantize_one(job: _Job, source: Variant, scheme: str, trained: Variant | None) -> Variant:
    """One scheme; ``trained`` is an int8 variant whose weights are taken over, with fresh ranges and a short QAT."""
    recipe = load_calibration(job.config.calibration)
    int8_outputs = wants_int8_outputs(job.config, scheme, job.targets)
    inputs = {**_inputs(job, source), **({"weights_from": _model_hash(trained)} if trained else {})}
    config = {
        **job.config.model_dump(include={"epochs", "lr", "temperature", "distill_weight"}),
        "calibration": recipe.model_dump(mode="json", by_alias=True),
        "scheme": scheme,
        "int8_outputs": int8_outputs,
    }
    suffix = source.name.removeprefix(job.start.name)
    name = f"int8-{scheme}{job.start.name.removeprefix('float')}{suffix}"
    stage = _stage(job, name, inputs, config)
    if stage.done:
        return Variant(job.run, stage.name, stage.skipped(job.console), skipped=True)
    spec = source.preprocess
    start = remove_quantizers(trained.load()) if trained else source.load()
    model = _calibrated(job, start, scheme, recipe, spec, int8_outputs=int8_outputs)
    ptq = evaluate_val(model, job.workspace, spec)
    job.console.say(f"{name}: ranges set, val top-1 {ptq['val_top1']:.2%} before training")
    plan = TrainingPlan.for_qat(job.config, **_recipe(job), share=_SHORT_QAT if trained else 1.0)
    teacher = _teacher(job, spec)
    metrics = fit(plan, model, job.workspace, spec, folder=stage.folder, console=job.console, teacher=teacher)
    return commit_variant(
        stage,
        model,
        source.architecture.quantized(quantizer_config(model), scheme),
        spec,
        parent=source.name,
        stage_name="quantize",
        config=config,
        origin={**origins(job.config, config), "scheme": _origin_of_schemes(job)},
        inputs=inputs,
        metrics={**metrics, "ptq_val_top1": ptq["val_top1"], "ptq_val_loss": ptq["val_loss"]},
        calibration=recipe.model_dump(mode="json", by_alias=True),
        weights_from=trained.name if trained else None,
        teacher=job.config.teacher or job.start.name,
    )


def _calibrated(
    job: _Job, model: nn.Module, scheme: str, recipe: CalibrationRecipe, spec: PreprocessSpec, *, int8_outputs: bool
) -> nn.Module:
    pictures = job.workspace.calibration(recipe, spec)

    def batches() -> Iterator[Tensor]:
        for batch in pictures.batches(spec, _CALIBRATION_BATCH):
            yield torch.from_numpy(batch)

    with job.console.task(f"setting int8 ranges ({scheme})") as progress:
        return quantize(
            model,
            batches(),
            scheme=get_scheme(scheme),
            range_estimator=recipe.range,
            int8_outputs=int8_outputs,
            progress=progress,
        )


def _recipe(job: _Job) -> dict[str, Any]:
    """How the original was trained, so that augmentation and batch size stay the same; defaults for an adopted one."""
    config = job.start.record.get("config", {})
    train = dict(config.get("train") or {})
    names = ("augment", "flip", "sampling", "batch_size", "seed", "precision", "memory_format")
    alike = {name: train[name] for name in names if name in train}
    if alike.get("batch_size") == "auto":
        alike["batch_size"] = job.start.record["metrics"]["training"]["batch_size"]
    where = "the original's record"
    alike["select"] = selection(validate(TrainConfig, train, where=where))
    return {**alike, "augmentation": validate(AugmentConfig, config.get("augment") or {}, where=where)}


def _inputs(job: _Job, source: Variant) -> dict[str, str]:
    return {
        "dataset": str(job.run.info["fingerprint"]),
        "source": _model_hash(source),
        "teacher": _teacher_hash(job),
    }


def _teacher(job: _Job, spec: PreprocessSpec) -> nn.Module:
    """What the student learns from, as a model of pictures prepared for the student."""
    return teacher_module(job.run, job.config.teacher or job.start.name, spec)


def _teacher_hash(job: _Job) -> str:
    name = job.config.teacher
    if name is None:
        return _model_hash(job.start)
    if name in job.run.ensembles():
        return str(job.run.ensembles()[name]["key"])  # of its members' weights and how they vote
    return _model_hash(open_variant(job.run, name))


def _model_hash(variant: Variant) -> str:
    return str(variant.record["outputs"]["model"]["sha256"])
