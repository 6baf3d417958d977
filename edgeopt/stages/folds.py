"""Cross-validation: as many trainings as folds, each judged on train pictures it did not see, and one model kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from edgeopt import records
from edgeopt.cross_validation import fold_figures
from edgeopt.data.dataset import Dataset
from edgeopt.data.folds import Folds, divide
from edgeopt.data.sets import StreamedSet
from edgeopt.errors import RunError
from edgeopt.files import read_npy, write_json, write_npy
from edgeopt.metrics import softmax
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import stage_key
from edgeopt.stages.soups import keep_best_or_soup
from edgeopt.stages.starting import NAME, VERSION, Order, say_weights
from edgeopt.stages.training import TrainingPlan, evaluate_val, fit
from edgeopt.stages.variants import Variant, commit_variant
from edgeopt.train.clock import Clock
from edgeopt.train.evaluate_torch import logits
from edgeopt.training_tables import seconds_of, selection


def cross_validate(order: Order, begun: float | None = None) -> Variant:
    """Train ``order`` once for each of ``train.folds`` parts of train, and keep the best model or their soup.

    Val is in no fold: on it each training picks its epoch, and what is kept is picked, so that the out-of-fold figures
    are of pictures no choice has seen. Each fold is a variant of its own (``float-fold1``, ...), committed as soon as
    it is trained: killed in the third, the same call goes on there. What is kept is the variant ``float``, whose
    ``out_of_fold.npy`` holds, for every train picture sorted by path, the probabilities float32 (N, classes) that the
    model which did not see it gave, at that model's own temperature; ``out_of_fold.json`` has paths, labels and folds.

    ``train.time`` bounds all folds together, from ``begun`` on (None: now): each may take an equal share of what is
    left of it, so that what one does not use is for the next. Raises ConfigError when a class has fewer different
    pictures than there are folds.
    """
    assert order.train.folds is not None
    folds = divide(order.workspace.dataset, order.train.folds, order.train.seed)
    keep: Literal["best", "soup"] = order.train.keep or "best"
    config = order.config(folds=True)
    config["train"]["keep"] = keep
    inputs = {**order.inputs(), "folds": folds.fingerprint}
    with order.run.lock():
        key = stage_key(inputs=inputs, config=config, version=VERSION)
        stage = order.run.stage("host", NAME, record="stage.json", key=key, force=order.force, resumes=True)
        if stage.done:
            return Variant(order.run, stage.name, stage.skipped(order.console), skipped=True)
        made: list[Variant] = []
        clock = Clock(None if order.train.time is None else seconds_of(order.train.time), begun=begun)
        for fold in range(1, folds.count + 1):
            share = clock.left / (folds.count - fold + 1)
            made.append(_trained(order, folds, fold, made[0].preprocess if made else None, share))
            if made[-1].skipped:  # by this call before it was interrupted
                clock.add(float(made[-1].record["metrics"]["training"]["seconds"]))
        answers = _out_of_fold(order.workspace.dataset, folds, made)
        figures = fold_figures([answers.correct[answers.fold == fold] for fold in range(1, folds.count + 1)])
        order.console.say(figures.summary())
        select = selection(order.train)
        kept = keep_best_or_soup(order.workspace, made, keep=keep, select=select, console=order.console)
        metrics = evaluate_val(kept.model, order.workspace, made[0].preprocess)
        return commit_variant(
            stage,
            kept.model,
            made[0].architecture,
            made[0].preprocess,
            parent=None,
            stage_name="cross-validation",
            config=config,
            origin=order.origin(config),
            inputs=inputs,
            metrics={**metrics, "training": kept.best.record["metrics"]["training"]},
            files=answers.write(stage.folder),
            weights_origin=kept.best.record.get("weights_origin"),
            cross_validation=figures.to_json(),
            ingredients=kept.to_json(),
            **order.taught_by(),
        )


def _trained(order: Order, folds: Folds, fold: int, preprocess: PreprocessSpec | None, seconds: float) -> Variant:
    """The model of one fold, trained for ``seconds`` at most and judged on what it holds out, or found made.

    ``preprocess`` is that of the folds before. All have one, or their weights could not be averaged: where pictures
    are normalized by their own mean and deviation, those are measured once, on the pictures of train in all folds.
    """
    config, inputs = {**order.config(), "fold": {"fold": fold, "of": folds.count}}, order.inputs()
    inputs["folds"] = folds.fingerprint
    key = stage_key(inputs=inputs, config=config, version=VERSION)
    name = f"{NAME}-fold{fold}"
    stage = order.run.stage("host", name, record="stage.json", key=key, force=order.force, resumes=True)
    if stage.done:
        return Variant(order.run, stage.name, stage.skipped(order.console), skipped=True)
    # All folds start alike, from the one seed, or their weights could not be averaged.
    created, spec = order.create(preprocess=preprocess)
    if fold == 1:
        say_weights(created, spec, order.console)
    workspace = replace(order.workspace, dataset=folds.without(order.workspace.dataset, fold))
    plan = replace(TrainingPlan.for_finetuning(order.train, order.augment), title=f"fold {fold} of {folds.count}")
    if math.isfinite(seconds):
        plan = replace(plan, loop=replace(plan.loop, time_seconds=max(seconds, 1.0)))
    metrics = fit(
        plan, created.model, workspace, spec, folder=stage.folder, console=order.console, teacher=order.teacher
    )
    probabilities, top1 = _judged(order, folds, fold, created.model, spec, metrics["temperature"])
    order.console.say(
        f"fold {fold} of {folds.count}: top-1 {top1:.2%} of {len(probabilities)} pictures held out "
        f"(val {metrics['val_top1']:.2%})"
    )
    return commit_variant(
        stage,
        created.model,
        created.architecture,
        spec,
        parent=None,
        stage_name="fold",
        config=config,
        origin=order.origin(order.config()),
        inputs=inputs,
        metrics={**metrics, "held_out_top1": top1},
        files={"held_out": write_npy(stage.folder / "held_out.npy", probabilities)},
        weights_origin=created.weights_origin,
        **order.taught_by(),
        fold={"fold": fold, "of": folds.count},
    )


def _judged(
    order: Order, folds: Folds, fold: int, model: nn.Module, spec: PreprocessSpec, temperature: float
) -> tuple[npt.NDArray[np.float32], float]:
    """Probabilities float32 (n, classes) of the pictures ``fold`` holds out, in their order, and the top-1 there."""
    items = folds.held_out(order.workspace.dataset, fold)
    pictures = StreamedSet(order.workspace.dataset, items, order.workspace.data.max_pixels)
    answers = softmax(logits(model, pictures, spec) / temperature).astype(np.float32)
    return answers, float((answers.argmax(axis=1) == [item.label for item in items]).mean())


@dataclass(frozen=True)
class OutOfFold:
    """For every train picture, sorted by path: ``probabilities`` float32 (N, classes), ``labels`` and ``fold`` (N,)."""

    paths: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int64]

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.probabilities.argmax(axis=1) == self.labels)

    def write(self, folder: Path) -> dict[str, Path]:
        """The files, by the names a record lists them under."""
        columns = {"paths": list(self.paths), "labels": self.labels.tolist(), "folds": self.fold.tolist()}
        write_json(folder / "out_of_fold.json", {"schema": 1, **columns})
        return {
            "out_of_fold": write_npy(folder / "out_of_fold.npy", self.probabilities),
            "out_of_fold_pictures": folder / "out_of_fold.json",
        }


def read_out_of_fold(variant: Variant) -> OutOfFold:
    """What a cross-validated ``variant`` answered out of fold, its files' hashes checked; raises RunError."""
    probabilities = read_npy(variant.run.output(variant.record, "out_of_fold"), "<f4")
    path = variant.run.output(variant.record, "out_of_fold_pictures")
    stated = records.read(records.OutOfFoldRecord, path)
    if probabilities.ndim != 2 or len(probabilities) != len(stated["paths"]):
        raise RunError(f"{path} does not fit the probabilities beside it", fix=records.OutOfFoldRecord.fix)
    labels, fold = (np.array(stated[name], np.int64) for name in ("labels", "folds"))
    return OutOfFold(tuple(stated["paths"]), probabilities, labels, fold)


def _out_of_fold(dataset: Dataset, folds: Folds, made: Sequence[Variant]) -> OutOfFold:
    items = dataset.of("train")
    fold = np.array([folds.of[item.path] for item in items], np.int64)
    probabilities = np.full((len(items), len(dataset.classes)), np.nan, np.float32)
    for number, variant in enumerate(made, start=1):
        probabilities[fold == number] = read_npy(variant.run.output(variant.record, "held_out"), "<f4")
    assert not np.isnan(probabilities).any()
    labels = np.array([item.label for item in items], np.int64)
    return OutOfFold(tuple(item.path for item in items), probabilities, labels, fold)
