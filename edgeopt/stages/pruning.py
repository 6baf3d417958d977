"""The pruning pass of a run: channels removed, then recovered by distilled training."""

from __future__ import annotations

import torch

from edgeopt.compress.prune import prune
from edgeopt.config import origins
from edgeopt.stages.passes import Job, inputs_of, open_stage, training_recipe
from edgeopt.stages.training import TrainingPlan, fit
from edgeopt.stages.variants import Variant, commit_variant


def pruned(job: Job, fraction: float) -> Variant:
    inputs = inputs_of(job, job.start)
    config = {
        **job.config.model_dump(include={"prune", "importance", "ignore", "recovery_epochs", "recovery_lr"}),
        **job.config.lesson(),
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
            ignored=job.config.ignore,
            gradient_batches=plan.gradient_batches(job.workspace, spec) if job.config.importance == "taylor" else None,
        )
    job.console.say(
        f"pruned: {result.macs_before / 1e6:.0f} to {result.macs_after / 1e6:.0f} M MACs, "
        f"{result.parameters_before / 1e6:.2f} to {result.parameters_after / 1e6:.2f} M parameters"
    )
    metrics = fit(
        plan, result.model, job.workspace, spec, folder=stage.folder, console=job.console, teacher=job.teacher
    )
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
        teacher=job.teacher.name,
        pruning={
            "macs_before": result.macs_before,
            "macs_after": result.macs_after,
            "parameters_before": result.parameters_before,
            "parameters_after": result.parameters_after,
            "widths": {layer: list(pair) for layer, pair in result.widths.items()},
            "untouched": dict(result.untouched),
        },
    )
