"""What the compression passes of one call share: the job, its stages, its teacher, and how the original was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgeopt.config import AugmentConfig, CompressConfig, TrainConfig, validate
from edgeopt.console import Console
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run, Stage, stage_key
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.voters import teacher_module
from edgeopt.stages.workspace import Workspace
from edgeopt.training_tables import selection

VERSION = 1


@dataclass(frozen=True)
class Job:
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


def training_recipe(job: Job) -> dict[str, Any]:
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


def inputs_of(job: Job, source: Variant) -> dict[str, str]:
    return {
        "dataset": str(job.run.info["fingerprint"]),
        "source": model_hash(source),
        "teacher": _teacher_hash(job),
    }


def teacher_of(job: Job, spec: PreprocessSpec) -> nn.Module:
    """What the student learns from, as a model of pictures prepared for the student."""
    return teacher_module(job.run, job.config.teacher or job.start.name, spec)


def _teacher_hash(job: Job) -> str:
    name = job.config.teacher
    if name is None:
        return model_hash(job.start)
    if name in job.run.ensembles():
        return str(job.run.ensembles()[name]["key"])  # of its members' weights and how they vote
    return model_hash(open_variant(job.run, name))


def model_hash(variant: Variant) -> str:
    return str(variant.record["outputs"]["model"]["sha256"])
