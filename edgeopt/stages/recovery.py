"""Distilled training of a network that was cut, in rounds, until val shows no more gain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeopt.compress.prune import History
from edgeopt.compress.reconstruct import matching_outputs
from edgeopt.files import make_folder
from edgeopt.metrics import Float, Int64, top_k_accuracy
from edgeopt.probability import fit_temperature, loss_difference
from edgeopt.stages.passes import Job, model_hash
from edgeopt.stages.training import TrainingPlan, evaluate_val, fit
from edgeopt.stages.variants import Variant
from edgeopt.train.checkpoint import LATER_ROUNDS
from edgeopt.train.evaluate_torch import logits
from edgeopt.train.layer_matching import Matched


def recover(
    job: Job, plan: TrainingPlan, start: nn.Module, model: nn.Module, history: History, *, folder: Path
) -> dict[str, Any]:
    """Train ``model``, which is ``start`` after ``history``, and give its figures on val.

    A round is the whole of ``plan``. Another follows, the config's ``recovery_rounds`` at most, while the model answers
    fewer of val's pictures rightly than ``start``, and val's log-loss, paired by picture, shows with 95 % confidence
    that the last round lowered it and that it is above that of ``start`` still.
    """
    spec = job.start.preprocess
    if not plan.loop.epochs:
        return evaluate_val(model, job.workspace, spec)
    matched = None
    if plan.match_weight:
        outputs = matching_outputs(start, history, example=torch.zeros(1, *spec.input_shape))
        matched = Matched(start, model_hash(job.start), outputs)
    pictures = job.workspace.prepared("val", spec)
    labels: Int64 = np.array(pictures.labels, np.int64)

    def answers(one: nn.Module) -> Float:
        return logits(one, pictures, spec)

    whole, last = answers(start), answers(model)
    turn, epochs, seconds = 1, 0, 0.0
    while True:
        metrics = fit(
            plan if turn == 1 else plan.again(turn),
            model,
            job.workspace,
            spec,
            folder=folder if turn == 1 else make_folder(folder / LATER_ROUNDS.replace("*", str(turn))),
            console=job.console,
            teacher=job.teacher,
            matched=matched,
        )
        training = metrics["training"]
        training["best_epoch"] += epochs
        epochs, seconds = epochs + training["epochs"], seconds + training["seconds"]
        training |= {"epochs": epochs, "seconds": round(seconds, 1), "rounds": turn}
        if turn == job.config.recovery_rounds:
            return metrics
        before, last = last, answers(model)
        found = still_gaining(whole, before, last, labels)
        if found is None:
            return metrics
        turn += 1
        job.console.say(
            f"recovery goes on, round {turn} of at most {job.config.recovery_rounds}: val loss fell by {found[0]:.3f} "
            f"in the last one and is {found[1]:.3f} above that of the whole network"
        )


def epochs_of(variant: Variant) -> int:
    """How many epochs of recovery it got, in all rounds."""
    return int(variant.record["metrics"].get("training", {}).get("epochs", 0))


def still_gaining(whole: Float, before: Float, after: Float, labels: Int64) -> tuple[float, float] | None:
    """Of three logits (N, classes) for ``labels`` (N,): how much lower the log-loss of ``after`` is than that of
    ``before``, and how far above that of ``whole``, nats; None where either cannot be told, or no answer is missing.

    Each is taken with the temperature fitted to it, as it is delivered: confidence alone is no gain.
    """
    if top_k_accuracy(after, labels) >= top_k_accuracy(whole, labels):
        return None
    whole, before, after = (one / np.float32(fit_temperature(one, labels)) for one in (whole, before, after))
    gained, missing = loss_difference(before, after, labels), loss_difference(whole, after, labels)
    return (-gained.mean, missing.mean) if gained.ci[1] < 0 < missing.ci[0] else None
