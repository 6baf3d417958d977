"""The pruning pass of a run: blocks and heads dropped, channels removed, at once or in steps, then recovered."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeopt import models, records
from edgeopt.compress.channels import TOLERANCE
from edgeopt.compress.depth import BlockCost, dropped, rank_blocks
from edgeopt.compress.heads import choose_heads, rank_heads
from edgeopt.compress.prune import (
    MOST_IMPORTANT,
    ONE_RATIO,
    History,
    Prunable,
    PruneResult,
    cuts,
    layer_widths,
    prunable,
    replay,
    step_of,
)
from edgeopt.compress.reconstruct import reconstruct
from edgeopt.errors import ModelError
from edgeopt.files import write_json
from edgeopt.models.macs import count_macs, count_parameters
from edgeopt.preprocess import PreprocessSpec
from edgeopt.stages.cut_timing import require_faster
from edgeopt.stages.half_made import PruneStepRecord
from edgeopt.stages.passes import Job, Recovered, recovered, training_recipe
from edgeopt.stages.recovery import recover
from edgeopt.stages.training import TrainingPlan
from edgeopt.stages.variants import Variant, is_own
from edgeopt.train.allocator import keep_memory
from edgeopt.train.evaluate_torch import evaluator
from edgeopt.train.soup import refresh_batchnorm

#: Keys that say how a cut network is trained.
RECOVERY = {"recovery_epochs", "recovery_rounds", "recovery_lr", "match_weight"}
_NAMED = 4  # layers in a line of those that were not pruned for one reason
_STEP = "step.json"  # of a pruning in steps: how many are done and what they cut; the weights are beside it


def pruned(job: Job) -> Variant:
    """The float variant without the MACs and blocks that the config names, recovered. Raises ModelError."""
    fields = {"prune", "importance", "reconstruct", "ignore", *RECOVERY}
    fields |= stated(job, "prune_steps", "drop_blocks", "drop_heads", "layer_cap")
    config = {**job.config.model_dump(include=fields), **job.config.lesson(), "round_to": job.round_to}

    def make(folder: Path) -> Recovered:
        keep_memory()
        spec, start = job.start.preprocess, job.start.load()
        plan = TrainingPlan.for_recovery(job.config, **training_recipe(job))
        model, done = _in_steps(job, start, plan, folder)
        record = pruning_record(start, model, torch.zeros(1, *spec.input_shape), done["reasons"])
        _require_smaller(record)
        _say(job, record)
        if done["latency"] is not None:
            record["latency"] = done["latency"]
        architecture = job.start.architecture.pruned(done["history"])
        return Recovered(model, architecture, spec, done["metrics"], {"pruning": record})

    origin = {} if job.config.round_to else {"round_to": "target" if job.targets else "default"}
    variant = recovered(job, f"{job.start.name}{_suffix(job)}", "prune", config=config, origin=origin, make=make)
    for left in (job.run.path / "host" / variant.name).glob("step*"):  # of the way there
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return variant


def _suffix(job: Job) -> str:
    blocks = f"-drop{job.config.drop_blocks}" if job.config.drop_blocks else ""
    blocks += f"-heads{job.config.drop_heads}" if job.config.drop_heads else ""
    return blocks + (f"-prune{round(job.config.prune * 100):02d}" if job.config.prune is not None else "")


def _in_steps(job: Job, start: nn.Module, plan: TrainingPlan, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The recovered model, and of it: what was cut, why layers were not, what it takes in int8, its figures on val.

    Every step removes the same share of the MACs that are left, fits layers and gathers BatchNorm's statistics anew and
    recovers for its share of the epochs. A finished step is kept, so that a killed run goes on with the next.
    """
    steps = job.config.prune_steps
    done: dict[str, Any] = {"schema": 1, "steps": 0, "history": [], "reasons": {}, "metrics": {}, "latency": None}
    if (folder / _STEP).is_file():
        done = records.read(PruneStepRecord, folder / _STEP)
        model = models.load(folder / f"step-{done['steps']}", allow_code=is_own(job.run))
    else:
        model, done["history"] = _without_parts(job, start, plan)
    for step in range(int(done["steps"]) + 1, steps + 1):
        if job.config.prune is not None:
            model, result = _fewer_channels(job, start, model, done["history"], plan, step)
            done["reasons"], done["history"] = dict(result.untouched), [*done["history"], *result.history]
        else:
            model = settled(job, start, model, done["history"], plan, what="the rest")
        if step == steps:  # a small part of the cuts may be no faster where all of them are
            done["latency"] = require_faster(job, start, done["history"])
        part, own = plan, folder
        if steps > 1:
            part, own = (
                replace(plan, loop=replace(plan.loop, epochs=-(-plan.loop.epochs // steps))).again(step),
                folder / f"step-{step}",
            )
            own.mkdir(exist_ok=True)
        done["metrics"] = recover(job, part, start, model, done["history"], folder=own)
        if steps > 1:
            models.save(model, job.start.architecture.pruned(done["history"]), own)
            write_json(folder / _STEP, {**done, "steps": step})
    return model, done


def _fewer_channels(
    job: Job, start: nn.Module, model: nn.Module, before: History, plan: TrainingPlan, step: int
) -> tuple[nn.Module, PruneResult]:
    """``model``, which is ``start`` after ``before``, without what the step is to remove, settled, and what was cut.

    Of the ways to spread the cuts the one with the lowest loss on val is taken: what such a network gives untrained
    tells what it will recover to (Li et al. 2020, EagleEye, https://arxiv.org/abs/2007.02491). Where the first costs no
    more than twice that loss's standard error, the others are not looked at.
    """
    ways = _ways(job, start, model, before, plan, step)

    def ready_by(name: str) -> nn.Module:
        return settled(job, start, ways[name].model, [*before, *ways[name].history], plan, what=name)

    name, *others = ways
    ready = {name: ready_by(name)}
    if others:
        validate = evaluator(job.workspace.prepared("val", job.start.preprocess), job.start.preprocess)
        uncut, losses = validate(start), {name: validate(ready[name])["loss"]}
        if losses[name] <= uncut["loss"] + 2 * uncut["loss_error"]:
            told = f"{losses[name]:.3f}, within the error of {uncut['loss']:.3f} uncut"
        else:
            for other in others:
                ready[other] = ready_by(other)
                losses[other] = validate(ready[other])["loss"]
            name = min(losses, key=lambda one: losses[one])
            told = ", ".join(f"{loss:.3f} by {way}" for way, loss in losses.items())
        job.console.say(f"cut by {name}: val loss before recovery {told}")
    return ready[name], ways[name]


def _ways(
    job: Job, start: nn.Module, model: nn.Module, before: History, plan: TrainingPlan, step: int
) -> dict[str, PruneResult]:
    """The ways to make the step's cuts, by name; where none is small enough for now, one that cuts nothing."""
    share, steps = float(job.config.prune or 0.0), job.config.prune_steps
    example = torch.zeros(1, *job.start.preprocess.input_shape)
    parts: History = [act for act in before if isinstance(act[1], str)]  # whole blocks and heads, gone before
    whole = count_macs(replay(copy.deepcopy(start), parts, example=example), example.shape)
    left = count_macs(model, example.shape) / whole
    fraction, tolerance = step_of(left, fraction=share, step=step, steps=steps)
    with job.console.task(f"pruning {max(fraction, 0.0):.0%} of the MACs"):
        found = channels_of(job, model, plan, whole=layer_widths(start))
        if fraction <= 0:  # those before it have done its part
            return {ONE_RATIO: found.cut([])}
        comparable = job.config.importance == "taylor"
        try:
            ways = cuts(found, fraction=fraction, round_to=job.round_to, comparable=comparable, tolerance=tolerance)
        except ModelError as error:
            if steps == 1:
                raise
            message = f"{error.message} (by step {step} of {steps}, of the {left:.0%} that are left)"
            raise ModelError(message, fix="fewer --prune-steps, or another --prune") from error
    enough = 1 - share - TOLERANCE  # of the MACs, in the end
    ways = {name: way for name, way in ways.items() if left * (1 - way.removed) >= enough}
    return ways or {ONE_RATIO: found.cut([])}


def stated(job: Job, *keys: str) -> set[str]:
    """Those of ``keys`` that are stated: what was made before there were such is found again by their defaults."""
    return set(keys) & job.config.model_fields_set


def channels_of(job: Job, start: nn.Module, plan: TrainingPlan, *, whole: Mapping[str, int] | None = None) -> Prunable:
    """What could be cut of the start, its layers once as wide as ``whole``, and how much each channel matters."""
    spec, taylor = job.start.preprocess, job.config.importance == "taylor"
    return prunable(
        start,
        example=torch.zeros(1, *spec.input_shape),
        round_to=job.round_to,
        importance=job.config.importance,
        gradient_batches=plan.gradient_batches(job.workspace, spec) if taylor else None,
        max_layer_fraction=job.config.layer_cap,
        ignored=job.config.ignore,
        whole=whole,
    )


def _without_parts(job: Job, start: nn.Module, plan: TrainingPlan) -> tuple[nn.Module, History]:
    """The model without the blocks and attention heads that are missed least, as many as the config names."""
    spec = job.start.preprocess
    model, history = _without_blocks(job, start, plan, spec) if job.config.drop_blocks else (start, [])
    if job.config.drop_heads:
        with job.console.task("ranking attention heads"):
            acts = choose_heads(
                model, rank_heads(model, _loss(list(plan.gradient_batches(job.workspace, spec)))), job.config.drop_heads
            )
        model = replay(copy.deepcopy(model), acts, example=torch.zeros(1, *spec.input_shape))
        history = [*history, *acts]
    return model, history


def _without_blocks(job: Job, start: nn.Module, plan: TrainingPlan, spec: PreprocessSpec) -> tuple[nn.Module, History]:
    """The model without the blocks that are missed least. Raises ModelError where there are not as many."""
    wanted = job.config.drop_blocks
    ranked = ranked_blocks(job, start, plan, spec)
    if len(ranked) < wanted:
        raise ModelError(
            f"{wanted} blocks cannot be dropped: {job.start.architecture.full_name} has {len(ranked)} residual blocks "
            "whose input and output are of one shape",
            fix=f"ask for at most {len(ranked)}" if ranked else "leave out --drop-blocks; --prune F cuts channels",
        )
    gone = ranked[:wanted]
    job.console.say("dropped: " + ", ".join(f"{block.name} (loss {block.loss:.3f} without it)" for block in gone))
    acts: History = dropped([block.name for block in gone])
    return replay(copy.deepcopy(start), acts), acts


def ranked_blocks(job: Job, model: nn.Module, plan: TrainingPlan, spec: PreprocessSpec) -> list[BlockCost]:
    """Residual blocks by the loss on train pictures that dropping each costs, BatchNorm left as it is."""
    batches = list(plan.gradient_batches(job.workspace, spec))
    with job.console.task("ranking blocks"):
        return rank_blocks(model, batches[0][0][:2], _loss(batches))


def _loss(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[nn.Module], float]:
    """A function from a model to its mean cross-entropy on ``batches``."""

    def loss_of(one: nn.Module) -> float:
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(one.eval()(images), labels) for images, labels in batches]
        return float(torch.stack(losses).mean())

    return loss_of


def settled(
    job: Job, whole: nn.Module, cut: nn.Module, history: History, plan: TrainingPlan, *, what: str = "this way"
) -> nn.Module:
    """``cut`` ready to recover: its layers fitted to what they gave in ``whole``, unless that is off, and BatchNorm's
    statistics gathered anew, both on train pictures.

    Fitting may do harm, to what the layers are not made of: then ``cut`` stays as it is, and that is said.
    """
    batches = list(plan.gradient_batches(job.workspace, job.start.preprocess))
    pictures = [images for images, _ in batches]
    refresh_batchnorm(cut.eval(), pictures)
    if not job.config.reconstruct:
        return cut
    with job.console.task("fitting layers anew"):
        fitted = copy.deepcopy(cut)
        if not reconstruct(whole, fitted, history, pictures):
            return cut
        refresh_batchnorm(fitted, pictures)
        loss_of = _loss(batches)
        plain, better = loss_of(cut), loss_of(fitted)
    if better < plain:
        return fitted
    job.console.say(
        f"fitting layers anew did not help {what}: loss {better:.3f} with it, {plain:.3f} without; left as they were"
    )
    return cut


def pruning_record(start: nn.Module, pruned: nn.Module, example: torch.Tensor, reasons: Mapping[str, str]) -> Any:
    """What became of ``start``: MACs, parameters and widths before and after, and why layers kept their widths.

    A layer of a dropped block has width 0 after.
    """
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


def _require_smaller(record: Mapping[str, Any]) -> None:
    """That the step took something away; a file's size follows its parameters."""
    for what, unit in (("macs", "MACs"), ("parameters", "parameters")):
        if record[f"{what}_after"] >= record[f"{what}_before"]:
            raise ModelError(
                f"pruning did not lower the {unit}: {record[f'{what}_before']} before, {record[f'{what}_after']} after",
                fix="ask for more: a larger --prune, --drop-blocks or --drop-heads",
            )


def _say(job: Job, record: Mapping[str, Any]) -> None:
    """One line on what is gone, one on the layers that could not be cut, with the reasons."""
    job.console.say(
        f"pruned: {record['macs_before'] / 1e6:.0f} to {record['macs_after'] / 1e6:.0f} M MACs, "
        f"{record['parameters_before'] / 1e6:.2f} to {record['parameters_after'] / 1e6:.2f} M parameters"
    )
    by_reason: dict[str, list[str]] = {}
    for layer, reason in record["untouched"].items():
        if reason != MOST_IMPORTANT:
            by_reason.setdefault(reason, []).append(layer)
    if by_reason:
        listed = "; ".join(f"{_first(layers)} ({reason})" for reason, layers in by_reason.items())
        job.console.say(f"not pruned: {listed}")


def _first(layers: Sequence[str]) -> str:
    """The first few; all are in the record."""
    more = len(layers) - _NAMED
    return ", ".join(layers[:_NAMED]) + (f" and {more} more" if more > 0 else "")
