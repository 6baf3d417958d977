"""What the compression passes of one call share: the job, its stages, its teacher, and how the original was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from edgeopt import environment
from edgeopt.config import AugmentConfig, CompressConfig, origins, validate
from edgeopt.console import Console
from edgeopt.models.architecture import Architecture
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run, Stage, stage_key
from edgeopt.stages.teachers import Teacher
from edgeopt.stages.variants import Variant, commit_variant
from edgeopt.stages.workspace import Workspace
from edgeopt.train.clock import Clock

VERSION = 1


@dataclass(frozen=True)
class Job:
    """What every pass of one call shares."""

    workspace: Workspace
    config: CompressConfig
    start: Variant
    teacher: Teacher
    targets: tuple[str, ...]
    round_to: int
    force: bool
    console: Console
    clock: Clock = field(default_factory=lambda: Clock(None))  # of the call, for its ladders

    @property
    def run(self) -> Run:
        return self.workspace.run


def open_stage(job: Job, name: str, inputs: Mapping[str, str], config: Mapping[str, Any]) -> Stage:
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


@dataclass(frozen=True)
class Recovered:
    """A float model that a pass made of the start and trained on; ``fields`` and ``files`` join its record."""

    model: nn.Module
    architecture: Architecture
    spec: PreprocessSpec
    metrics: Mapping[str, Any]
    fields: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


def recovered(
    job: Job,
    name: str,
    stage_name: str,
    *,
    config: Mapping[str, Any],
    origin: Mapping[str, str],
    make: Callable[[Path], Recovered],
) -> Variant:
    """The float variant that ``make`` makes of the start in its folder; the one at hand where nothing changed.

    ``origin`` says where what ``config`` has beside keys of the recipe comes from.
    """
    inputs = inputs_of(job, job.start)
    stage = open_stage(job, name, inputs, config)
    if stage.done:
        return Variant(job.run, stage.name, stage.skipped(job.console), skipped=True)
    made = make(stage.folder)
    return commit_variant(
        stage,
        made.model,
        made.architecture,
        made.spec,
        parent=job.start.name,
        stage_name=stage_name,
        config=config,
        origin={**origins(job.config, config), **{name: who for name, who in origin.items() if name in config}},
        inputs=inputs,
        metrics=made.metrics,
        files=made.files,
        teacher=job.teacher.name,
        **made.fields,
    )


def training_recipe(job: Job) -> dict[str, Any]:
    """How the original was trained, so that augmentation and batch size stay the same; defaults for an adopted one.

    Of the ways to compute, the one that its training found the fastest on this machine is not looked for again.
    """
    config = job.start.record.get("config", {})
    train = dict(config.get("train") or {})
    names = ("augment", "flip", "sampling", "batch_size", "seed", "precision", "memory_format")
    alike = {name: train[name] for name in names if name in train}
    if alike.get("batch_size") == "auto":
        alike["batch_size"] = job.start.record["metrics"]["training"]["batch_size"]
    found = (job.start.record.get("metrics") or {}).get("training") or {}
    if job.start.record.get("machine") == environment.machine_id() and "memory_format" in found:
        alike["known_way"] = (found["precision"], found["memory_format"])
    where = "the original's record"
    return {**alike, "augmentation": validate(AugmentConfig, config.get("augment") or {}, where=where)}


def inputs_of(job: Job, source: Variant) -> dict[str, str]:
    return {
        "dataset": str(job.run.info["fingerprint"]),
        "source": model_hash(source),
        "teacher": job.teacher.sha256,
    }


def model_hash(variant: Variant) -> str:
    return str(variant.record["outputs"]["model"]["sha256"])
