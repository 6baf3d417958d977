"""The pruning pass of a run: channels removed, then recovered by distilled training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edgeopt.compress.prune import MOST_IMPORTANT, layer_widths, prune
from edgeopt.config import origins
from edgeopt.models.macs import count_macs, count_parameters
from edgeopt.stages.passes import Job, inputs_of, open_stage, teacher_of, training_recipe
from edgeopt.stages.training import TrainingPlan, fit
from edgeopt.stages.variants import Variant, commit_variant


def pruned(job: Job, fraction: float) -> Variant:
    inputs = inputs_of(job, job.start)
    config = {
        **job.config.model_dump(include={"prune", "importance", "recovery_epochs", "recovery_lr"}),
        **job.config.model_dump(include={"temperature", "distill_weight"}),
        "round_to": job.round_to,
    }
    name = f"{job.start.name}-prune{round(fraction * 100):02d}"
    stage = open_stage(job, name, inputs, config)
    if stage.done:
        return Variant(job.run, stage.name, stage.skipped(job.console), skipped=True)
    spec = job.start.preprocess
    start = job.start.load()
    plan = TrainingPlan.for_recovery(job.config, **training_recipe(job))
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
    teacher = start if job.config.teacher is None else teacher_of(job, spec)
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
        pruning=pruning_record(start, result.model, torch.zeros(1, *spec.input_shape), result.untouched),
    )


def pruning_record(start: nn.Module, pruned: nn.Module, example: torch.Tensor, reasons: Mapping[str, str]) -> Any:
    """What became of ``start``: MACs, parameters and widths before and after, and why layers kept their widths."""
    before, after = layer_widths(start), layer_widths(pruned)
    return {
        "macs_before": count_macs(start, example.shape),
        "macs_after": count_macs(pruned, example.shape),
        "parameters_before": count_parameters(start),
        "parameters_after": count_parameters(pruned),
        "widths": {layer: [width, after.get(layer, 0)] for layer, width in before.items()},
        "untouched": {
            layer: reasons.get(layer, MOST_IMPORTANT) for layer, width in before.items() if after.get(layer, 0) == width
        },
    }
