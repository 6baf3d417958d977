"""Pruning to a measured latency in a run: candidates timed before training, the best recovered, the end judged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeopt.compress.latency.search import Search, search
from edgeopt.compress.latency.slices import Slicer
from edgeopt.compress.prune import prunable, replay
from edgeopt.compress.quantize import quantize
from edgeopt.config import Target, load_calibration, origins
from edgeopt.errors import ConfigError, ModelError
from edgeopt.files import read_json, write_json
from edgeopt.latency_goal import LatencyGoal, latency_goal
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import load_backend
from edgeopt.schemes import get_scheme
from edgeopt.stages.calibrating import calibration_set
from edgeopt.stages.passes import Job, inputs_of, open_stage, training_recipe
from edgeopt.stages.pruning import gather_statistics, pruning_record, ranked_blocks
from edgeopt.stages.quantizing import wants_int8_outputs
from edgeopt.stages.timing import bed_of
from edgeopt.stages.training import TrainingPlan, fit
from edgeopt.stages.variants import Variant, commit_variant
from edgeopt.train.evaluate_torch import evaluator

RECORD = "latency_search.json"
_CALIBRATION_PICTURES = 32  # for the ranges of candidates, which nobody asks for answers


def goal_of(job: Job) -> LatencyGoal:
    """The latency asked for."""
    assert job.config.latency is not None
    return latency_goal(job.config.latency)


def require_measurable(target: Target, targets: Sequence[str]) -> None:
    """That the one target can be measured on this machine; raises ConfigError or MissingBackendError otherwise."""
    from edgeopt import environment

    if len(targets) != 1 or target.precision != "int8":
        raise ConfigError(
            "a latency is that of int8 engines of one target"
            + (f", not of {len(targets)}" if len(targets) > 1 else ""),
            fix="name one: edgeopt compress --int8 --latency 4ms --target openvino",
        )
    if not environment.matches(target.match):
        raise ConfigError(
            f"{target.name} is another device, and its latency can be measured there only",
            fix="run the same command on that device, or prune by MACs: --prune 0.3",
        )
    load_backend(target.backend).require(to_build=True)


def pruned_to_latency(job: Job, target: Target, scheme: str) -> Variant:
    """The float variant whose int8 engine meets the latency, recovered. Raises ModelError when no widths would."""
    inputs = inputs_of(job, job.start)
    config = {
        **job.config.model_dump(include={"latency", "importance", "ignore", "recovery_epochs", "recovery_lr"}),
        **job.config.lesson(),
        "round_to": job.round_to,
        "target": target.model_dump(mode="json", exclude={"budget", "title", "sources", "status"}),
        "scheme": scheme,
    }
    stage = open_stage(job, f"{job.start.name}-under{goal_of(job).label}", inputs, config)
    if stage.done:
        return Variant(job.run, stage.name, stage.skipped(job.console), skipped=True)
    spec, start = job.start.preprocess, job.start.load()
    plan = TrainingPlan.for_recovery(job.config, **training_recipe(job))
    if not (stage.folder / RECORD).is_file():
        _search(job, target, scheme, start, plan, stage.folder)
    found = read_json(stage.folder / RECORD)
    history = found["chosen"]["history"]
    example = torch.zeros(1, *spec.input_shape)
    pruned = replay(copy.deepcopy(start), history, example=example)
    gather_statistics(job, pruned, plan, spec)
    metrics = fit(plan, pruned, job.workspace, spec, folder=stage.folder, console=job.console, teacher=job.teacher)
    return commit_variant(
        stage,
        pruned,
        job.start.architecture.pruned(history),
        spec,
        parent=job.start.name,
        stage_name="prune",
        config=config,
        origin={**origins(job.config, config), "round_to": "target", "target": "call", "scheme": "target"},
        inputs=inputs,
        metrics=metrics,
        teacher=job.teacher.name,
        pruning=pruning_record(start, pruned, example, found["untouched"]),
        latency_search=found,
        files={RECORD: stage.folder / RECORD, "reference": stage.folder / "reference.onnx"},
    )


def _search(job: Job, target: Target, scheme: str, start: nn.Module, plan: TrainingPlan, folder: Path) -> None:
    """Time, predict, choose; leaves ``latency_search.json`` and the unpruned engine's ONNX, for a resume to find."""
    spec, taylor = job.start.preprocess, job.config.importance == "taylor"
    found = prunable(
        start,
        example=torch.zeros(1, *spec.input_shape),
        round_to=job.round_to,
        importance=job.config.importance,
        gradient_batches=plan.gradient_batches(job.workspace, spec) if taylor else None,
        ignored=job.config.ignore,
    )
    validate = evaluator(job.workspace.prepared("val", spec), spec)

    def judge(history: list[Any]) -> dict[str, float]:
        """On val, untrained but for BatchNorm's statistics: what such a network scores tells what it will recover to.

        Li et al. 2020 (EagleEye, https://arxiv.org/abs/2007.02491) find the correlation.
        """
        pruned = replay(copy.deepcopy(start), history, example=found.example)
        gather_statistics(job, pruned, plan, spec)
        return validate(pruned)

    blocks = ranked_blocks(job, start, plan, spec)
    with bed_of(job, target, scheme) as bed:
        slicer = Slicer(start, _ranged(job, start, scheme), get_scheme(scheme), bed.folder, spec.input_shape)
        with job.console.task("timing widths") as progress:
            result = search(
                found,
                Search(bed, slicer, goal_of(job), job.config.timing_seconds, _smaller_sizes(job), blocks),
                judge=judge,
                say=job.console.say,
                progress=progress,
            )
        (folder / "reference.onnx").write_bytes((bed.folder / "whole.onnx").read_bytes())
    write_json(folder / RECORD, {**result, "untouched": found.reasons})


def _smaller_sizes(job: Job) -> list[PreprocessSpec]:
    """The rival's inputs, the largest first: the model's own proportions in steps its strides like."""
    spec = job.start.preprocess
    try:
        job.start.architecture.resized((spec.size[0], spec.size[1]))
    except ModelError as error:
        job.console.say(f"no rival at a smaller input: {error.message}")
        return []
    longest = max(spec.size)
    step = 32 if longest >= 192 else 16 if longest >= 96 else 8
    sides = range(longest - step, max(step, int(0.4 * longest)) - 1, -step)
    return [spec.model_copy(update={"size": _scaled(spec.size, side / longest, step)}) for side in sides]


def _scaled(size: tuple[int, int], factor: float, step: int) -> tuple[int, int]:
    height, width = (max(step, round(side * factor / step) * step) for side in size)
    return height, width


def _ranged(job: Job, model: nn.Module, scheme: str) -> nn.Module:
    """The model with quantizers where the real one will have them; a few pictures do for their ranges."""
    spec = job.start.preprocess
    pictures = calibration_set(job.workspace, load_calibration(job.config.calibration), job.start)
    batches = [torch.from_numpy(batch) for batch in islice(pictures.batches(spec, 16), _CALIBRATION_PICTURES // 16)]
    return quantize(
        model,
        batches,
        scheme=get_scheme(scheme),
        ignored=job.config.ignore,
        int8_outputs=wants_int8_outputs(job.config, scheme, job.targets),
    )


def rival_size(job: Job, pruned: Variant) -> tuple[int, int] | None:
    """The largest smaller input (height, width) that meets the latency too; None where none does, or none is wanted."""
    size = pruned.record["latency_search"].get("rival_size")
    return (int(size[0]), int(size[1])) if job.config.rival and size is not None else None


def rival_of(job: Job, size: tuple[int, int]) -> Variant:
    """The unpruned model at the smaller input ``size`` (height, width), trained on like a pruned one.

    It is what pruning has to beat: same latency, same epochs, same teacher.
    """
    inputs = inputs_of(job, job.start)
    config = {
        **job.config.model_dump(include={"recovery_epochs", "recovery_lr"}),
        **job.config.lesson(),
        "size": list(size),
    }
    label = f"{size[0]}px" if size[0] == size[1] else f"{size[0]}x{size[1]}px"
    stage = open_stage(job, f"{job.start.name}-{label}", inputs, config)
    if stage.done:
        return Variant(job.run, stage.name, stage.skipped(job.console), skipped=True)
    spec = job.start.preprocess.model_copy(update={"size": size})
    model = job.start.load()
    plan = replace(TrainingPlan.for_recovery(job.config, **training_recipe(job)), title=f"the rival at {label}")
    metrics = fit(plan, model, job.workspace, spec, folder=stage.folder, console=job.console, teacher=job.teacher)
    return commit_variant(
        stage,
        model,
        job.start.architecture.resized(size),
        spec,
        parent=job.start.name,
        stage_name="resize",
        config=config,
        origin={**origins(job.config, config), "size": "the latency asked for"},
        inputs=inputs,
        metrics=metrics,
        teacher=job.teacher.name,
    )
