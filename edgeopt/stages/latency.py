"""Pruning to a measured latency in a run: candidates timed before training, the best recovered, the end judged."""

from __future__ import annotations

import copy
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeopt import environment, records
from edgeopt.compress.latency.clocks import Clock, Here
from edgeopt.compress.latency.search import Search, search
from edgeopt.compress.prune import History, replay
from edgeopt.config import Target
from edgeopt.errors import ConfigError
from edgeopt.files import write_json
from edgeopt.latency_goal import LatencyGoal, latency_goal
from edgeopt.registry import load_backend
from edgeopt.run import Run
from edgeopt.stages.half_made import LatencySearchRecord
from edgeopt.stages.latency_elsewhere import described, elsewhere, times_of_candidates
from edgeopt.stages.latency_networks import slicer_of, smaller_sizes
from edgeopt.stages.passes import Job, Recovered, recovered, training_recipe
from edgeopt.stages.pruning import RECOVERY, channels_of, pruning_record, ranked_blocks, settled, stated
from edgeopt.stages.recovery import recover
from edgeopt.stages.timing import bed_of
from edgeopt.stages.training import TrainingPlan, fit
from edgeopt.stages.variants import Variant
from edgeopt.train.evaluate_torch import evaluator

RECORD = "latency_search.json"
#: The output that is the unpruned engine's ONNX, where this machine is the target.
REFERENCE = "reference"


def goal_of(job: Job) -> LatencyGoal:
    """The latency asked for."""
    assert job.config.latency is not None
    return latency_goal(job.config.latency)


def require_measurable(target: Target, targets: Sequence[str], runs: Sequence[Run]) -> None:
    """That the one target can be measured here, or was in one of ``runs``; raises ConfigError, MissingBackendError."""
    require_one_target(target, targets)
    if environment.matches(target.match):
        load_backend(target.backend).require(to_build=True)
    elif not any(record["target"] == target.name for run in runs for record in run.candidate_times().values()):
        raise ConfigError(
            f"{target.name} is another device, and its latency can be measured there only",
            fix=f"edgeopt compress --int8 --latency-candidates --target {shlex.quote(targets[0])} says how "
            "(in a recipe: latency_candidates = true in place of latency); or run the same command on that device, or "
            "prune by MACs: --prune 0.3",
        )


def require_one_target(target: Target, targets: Sequence[str]) -> None:
    """Raises ConfigError for none and for several, and for one that is not of int8."""
    if len(targets) != 1 or target.precision != "int8":
        raise ConfigError(
            "a latency is that of int8 engines of one target"
            + (f", not of {len(targets)}" if len(targets) > 1 else ""),
            fix="name one: edgeopt compress --int8 --latency 4ms --target openvino",
        )


def pruned_to_latency(job: Job, target: Target, scheme: str) -> Variant:
    """The float variant whose int8 engine meets the latency, recovered. Raises ModelError when no widths would."""
    here = environment.matches(target.match)
    config = {
        **job.config.model_dump(
            include={"latency", "importance", "reconstruct", "ignore", *RECOVERY, *stated(job, "layer_cap")}
        ),
        **job.config.lesson(),
        "round_to": job.round_to,
        "target": described(target),
        "scheme": scheme,
        **({} if here else {"times": times_of_candidates(job, target, scheme)["created"]}),
    }

    def make(folder: Path) -> Recovered:
        if not (folder / RECORD).is_file():
            _search(job, target, scheme, folder)
        found = records.read(LatencySearchRecord, folder / RECORD)
        made = cut_and_recovered(job, found["chosen"]["history"], found["untouched"], folder)
        names = {RECORD: RECORD, REFERENCE: "reference.onnx"}
        files = {name: path for name, file in names.items() if (path := folder / file).is_file()}
        return replace(made, fields={**made.fields, "latency_search": found}, files=files)

    origin = {"target": "call", "scheme": "target", "times": "that device"}
    if job.config.round_to is None:
        origin["round_to"] = "target"
    name = f"{job.start.name}-under{goal_of(job).label}"
    return recovered(job, name, "prune", config=config, origin=origin, make=make)


def cut_and_recovered(job: Job, history: History, reasons: Mapping[str, str], folder: Path) -> Recovered:
    """The start with the cuts of ``history``, trained in ``folder``; ``reasons``: why layers kept their widths."""
    spec, start = job.start.preprocess, job.start.load()
    plan = TrainingPlan.for_recovery(job.config, **training_recipe(job))
    example = torch.zeros(1, *spec.input_shape)
    pruned = replay(copy.deepcopy(start), history, example=example)
    pruned = settled(job, start, pruned, history, plan)
    metrics = recover(job, plan, start, pruned, history, folder=folder)
    fields = {"pruning": pruning_record(start, pruned, example, reasons)}
    return Recovered(pruned, job.start.architecture.pruned(history), spec, metrics, fields)


def _search(job: Job, target: Target, scheme: str, folder: Path) -> None:
    """Time, predict, choose; leaves ``latency_search.json`` and the unpruned engine's ONNX, for a resume to find."""
    spec, start = job.start.preprocess, job.start.load()
    plan = TrainingPlan.for_recovery(job.config, **training_recipe(job))
    found = channels_of(job, start, plan)
    validate = evaluator(job.workspace.prepared("val", spec), spec)

    def judge(history: list[Any]) -> dict[str, float]:
        """On val, settled and untrained: what such a network scores tells what it will recover to.

        Li et al. 2020 (EagleEye, https://arxiv.org/abs/2007.02491) find the correlation.
        """
        pruned = replay(copy.deepcopy(start), history, example=found.example)
        return validate(settled(job, start, pruned, history, plan))

    blocks = ranked_blocks(job, start, plan, spec)
    with _clock(job, target, scheme, start, folder) as clock, job.console.task("timing widths") as progress:
        wanted = Search(clock, goal_of(job), smaller_sizes(job), blocks)
        result = search(found, wanted, judge=judge, say=job.console.say, progress=progress)
    write_json(folder / RECORD, {**result, "untouched": found.reasons})


@contextmanager
def _clock(job: Job, target: Target, scheme: str, start: nn.Module, folder: Path) -> Iterator[Clock]:
    """This machine where it is the target, its unpruned engine's ONNX kept in ``folder``; else the device's times."""
    if not environment.matches(target.match):
        yield elsewhere(job, times_of_candidates(job, target, scheme))
        return
    with bed_of(job, target, scheme) as bed:
        slicer = slicer_of(job, start, scheme, bed.folder)
        yield Here(bed, slicer, job.config.timing_seconds)
        shutil.copyfile(slicer.whole_file(), folder / "reference.onnx")


def rival_size(job: Job, pruned: Variant) -> tuple[int, int] | None:
    """The largest smaller input (height, width) that meets the latency too; None where none does, or none is wanted."""
    size = pruned.record["latency_search"].get("rival_size")
    return (int(size[0]), int(size[1])) if job.config.rival and size is not None else None


def rival_of(job: Job, size: tuple[int, int], *, epochs: int) -> Variant:
    """The unpruned model at the smaller input ``size`` (height, width), trained on for ``epochs`` like a pruned one.

    It is what pruning has to beat: same latency, as many epochs in one round, same teacher.
    """
    config = {
        "recovery_epochs": epochs,
        **job.config.model_dump(include={"recovery_lr"}),
        **job.config.lesson(),
        "size": list(size),
    }
    label = f"{size[0]}px" if size[0] == size[1] else f"{size[0]}x{size[1]}px"

    def make(folder: Path) -> Recovered:
        spec, model = job.start.preprocess.model_copy(update={"size": size}), job.start.load()
        plan = TrainingPlan.for_recovery(job.config, **training_recipe(job))
        plan = replace(plan, title=f"the rival at {label}", loop=replace(plan.loop, epochs=epochs))
        metrics = fit(plan, model, job.workspace, spec, folder=folder, console=job.console, teacher=job.teacher)
        return Recovered(model, job.start.architecture.resized(size), spec, metrics)

    origin = {"size": "the latency asked for", "recovery_epochs": "those of the pruned one"}
    return recovered(job, f"{job.start.name}-{label}", "resize", config=config, origin=origin, make=make)
