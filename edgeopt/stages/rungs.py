"""The rungs of the ladder: each a way to int8, made, judged on val and committed, so that none is climbed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from edgeopt import models
from edgeopt.compress.quantize import quantizer_config, remove_quantizers
from edgeopt.compress.sensitivity import layer_sensitivity
from edgeopt.config import CalibrationRecipe, load_calibration
from edgeopt.errors import EdgeoptError
from edgeopt.files import read_npy, write_npy
from edgeopt.metrics import Float, PairedDrop, paired_drop
from edgeopt.models.architecture import Architecture
from edgeopt.probability import loss_difference, nll
from edgeopt.run import Run, Stage, stage_key
from edgeopt.stages.calibrating import CalibrationBatches, calibration_set
from edgeopt.stages.passes import Job, training_recipe
from edgeopt.stages.quantizing import SHORT_QAT, calibrated, wants_int8_outputs
from edgeopt.stages.timing import times_of
from edgeopt.stages.training import TrainingPlan, fit
from edgeopt.stages.variants import Variant, is_own
from edgeopt.train.evaluate_torch import logits

VERSION = 1
RUNGS = "rungs"  # the folder of them, in the variant's
_LONGER = 3.0  # times the epochs of the rung before
_TIMED_LAYERS = 6
_TIMING_SECONDS = 15.0
_WHOLE = "every layer in int8"
_FLOAT_LAYERS = (1, 2, 4, 8)
#: What the variant's record keeps of a rung's.
_KEPT = (
    *("name", "title", "how", "from", "epochs", "float_layers", "tried", "sensitivity", "seconds"),
    *("val_top1", "val_loss", "drop", "loss_over_float", "loss_over_best", "holds"),
)
_SENSITIVITY_PICTURES = 256  # of val: ranks layers, and takes a pass over them for each


@dataclass(frozen=True)
class Rung:
    """One attempt: its committed folder, what it scored on val, and how it was made."""

    record: Mapping[str, Any]
    folder: Path
    answers: Float

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def holds(self) -> bool:
        return bool(self.record["holds"])

    @property
    def loss(self) -> float:
        return float(self.record["val_loss"])

    def load(self, run: Run) -> nn.Module:
        """The model, in evaluation mode."""
        return models.load(self.folder, allow_code=is_own(run))


@dataclass(frozen=True)
class Made:
    """A quantized model, the calibration its ranges come from, and how it was made, in words and in figures."""

    model: nn.Module
    recipe: CalibrationRecipe
    how: str
    fields: dict[str, Any] = field(default_factory=dict)


def _how(recipe: CalibrationRecipe, there: int) -> str:
    return f"{recipe.range} ranges of {min(recipe.count, there)} {recipe.selection} pictures"


def _json(reference: Float, answers: Float, labels: Any) -> dict[str, Any]:
    difference = loss_difference(reference, answers, labels)
    return {"mean": difference.mean, "ci": list(difference.ci)}


@dataclass
class Ladder:
    """A climb: what it starts from, and the rungs so far."""

    job: Job
    source: Variant
    scheme: str
    trained: Variant | None
    stage: Stage
    rungs: list[Rung] = field(default_factory=list)
    seconds: float = float("inf")  # that it may take, from now on

    def __post_init__(self) -> None:
        self._end = self.job.clock.elapsed + self.seconds
        workspace, start = self.job.workspace, self.job.start
        self._pictures = workspace.prepared("val", self.source.preprocess)
        self.labels = np.array(self._pictures.labels, np.int64)
        reference = workspace.prepared("val", start.preprocess)
        self._reference = logits(start.load(), reference, start.preprocess)
        self._train = len(workspace.dataset.of("train"))

    def climb(self) -> str:
        """Climb until a rung holds; returns why it ended."""
        trials = self.job.config.trials
        for name, title, make in self._ways():
            if trials is not None and len(self.rungs) >= trials:
                return "trials"
            if self.rungs and self._left() <= 0 and not self._stage(name).done:
                return "time"
            self.rungs.append(self._taken(name, title, make))
            if self.rungs[-1].holds:
                return "held"
        return "no rung is left"

    def timed(self) -> dict[str, Any]:
        """``rungs`` for the variant's record, with ``p50_ms`` of their engines, and what single layers in float cost.

        Rungs whose layers are all int8 run the same engine but for its numbers, and have one figure. ``timed_on`` is
        the target; null where none runs here.
        """
        rungs = [{key: rung.record[key] for key in _KEPT if key in rung.record} for rung in self.rungs]
        tables: list[list[dict[str, Any]]] = [rung["sensitivity"] for rung in rungs if "sensitivity" in rung]
        ranked = tables[0][:_TIMED_LAYERS] if tables else []
        mixed = {rung.name: rung.load(self.job.run) for rung in self.rungs if rung.record.get("float_layers")}
        recipe = load_calibration(self.job.config.calibration)
        single = {f"layer {row['layer']}": self._quantized(self._start(), recipe, (row["layer"],)) for row in ranked}
        whole = {_WHOLE: self.rungs[0].load(self.job.run)}
        engines = {**whole, **mixed, **single}
        try:
            found = times_of(self.job, self.scheme, self.source.preprocess, engines, seconds=_TIMING_SECONDS)
            why = "no target that takes this scheme runs here"
        except EdgeoptError as error:  # what was climbed for hours is not lost for it
            found, why = None, error.message
        if found is None:
            self.job.console.say(f"rungs are not timed: {why}")
            return {"rungs": rungs, "timed_on": None}
        target, p50 = found
        for rung in rungs:
            rung["p50_ms"] = p50[rung["name"] if rung.get("float_layers") else _WHOLE].value
        costs = {name: p50[f"layer {name}"].value - p50[_WHOLE].value for name in (row["layer"] for row in ranked)}
        return {
            "rungs": rungs,
            "timed_on": target,
            "layers": [{**row, "cost_ms": costs[row["layer"]]} for row in ranked],
        }

    def _left(self) -> float:
        return self._end - self.job.clock.elapsed

    def _ways(self) -> Iterator[tuple[str, str, Callable[[Path], Made]]]:
        yield "ptq", "post-training ranges", self._ptq
        yield "ranges", "better ranges", self._better_ranges
        if self.job.config.epochs:
            yield "qat", "quantization-aware training", lambda folder: self._trained(folder, 1.0)
            yield "long", "longer quantization-aware training", lambda folder: self._trained(folder, _LONGER)
        placed = Architecture.read(self._best().folder / "architecture.json").quantizers or {"quantizers": []}
        layers = sum(1 for entry in placed["quantizers"] if entry["shape"])
        for count in _FLOAT_LAYERS:
            if count < layers:
                title = f"{count} layer{'s' * (count > 1)} left in float"
                yield f"float-{count}", title, lambda folder, count=count: self._in_float(folder, count)  # type: ignore[misc]

    def _best(self) -> Rung:
        return min(self.rungs, key=lambda rung: rung.loss)

    def _taken(self, name: str, title: str, make: Callable[[Path], Made]) -> Rung:
        """The rung of this name: as it was committed before, or made now."""
        job, stage = self.job, self._stage(name)
        if stage.done:
            rung = self._opened(stage)
            job.clock.add(float(rung.record["seconds"]))  # this call took them before it was interrupted
            return rung
        job.console.say(f"rung {len(self.rungs) + 1}: {title}")
        made = make(stage.folder)
        answers = logits(made.model, self._pictures, self.source.preprocess)
        models.save(
            made.model, self.source.architecture.quantized(quantizer_config(made.model), self.scheme), stage.folder
        )
        write_npy(stage.folder / "val_logits.npy", answers)
        stage.commit(
            outputs={
                "model": stage.folder / "model.safetensors",
                "architecture": stage.folder / "architecture.json",
                "answers": stage.folder / "val_logits.npy",
            },
            title=title,
            how=made.how,
            calibration=made.recipe.model_dump(mode="json", by_alias=True),
            **self._figures(answers),
            **made.fields,
        )
        rung = self._opened(stage)
        drop = rung.record["drop"]
        job.console.say(
            f"  val top-1 {rung.record['val_top1']:.2%}, drop {drop['drop_points']:.2f} points "
            f"({drop['lower_points']:.2f} to {drop['upper_points']:.2f}), loss {rung.loss:.4f}: "
            f"{'holds' if rung.holds else 'does not hold'}"
        )
        return rung

    def _stage(self, name: str) -> Stage:
        key = stage_key(inputs={"ladder": self.stage.key}, config={"rung": name}, version=VERSION)
        place = f"host/{self.stage.name}/{RUNGS}"
        return self.job.run.stage(place, name, record="rung.json", key=key, resumes=True, outdated=lambda _: True)

    def _figures(self, answers: Float) -> dict[str, Any]:
        """What a rung scores on val, next to the float model and to the best rung before it, and whether it holds."""
        drop = self.drop(answers)
        return {
            "val_top1": float(self._right(answers).mean()),
            "val_loss": float(nll(answers, self.labels).mean()),
            "drop": drop.to_json(),
            "loss_over_float": _json(self._reference, answers, self.labels),
            "loss_over_best": _json(self._best().answers, answers, self.labels) if self.rungs else None,
            "holds": drop.drop_points <= float(self.job.config.max_drop or 0.0),
        }

    def _opened(self, stage: Stage) -> Rung:
        record = stage.record()
        for name in record["outputs"]:
            self.job.run.output(record, name)
        return Rung(record, stage.folder, read_npy(stage.folder / "val_logits.npy", "<f4"))

    def drop(self, answers: Float) -> PairedDrop:
        """Of val logits against those of the float model."""
        return paired_drop(self._right(self._reference), self._right(answers))

    def _loss_of(self, model: nn.Module) -> float:
        return float(nll(logits(model, self._pictures, self.source.preprocess), self.labels).mean())

    def _right(self, answers: Float) -> Any:
        return answers.argmax(axis=1) == self.labels

    # -- the ways --------------------------------------------------------------------------------------------------

    def _start(self) -> nn.Module:
        return remove_quantizers(self.trained.load()) if self.trained else self.source.load()

    def _quantized(self, model: nn.Module, recipe: CalibrationRecipe, ignored: tuple[str, ...] = ()) -> nn.Module:
        int8_outputs = wants_int8_outputs(self.job.config, self.scheme, self.job.targets)
        return calibrated(self.job, model, self.scheme, recipe, self.source, int8_outputs=int8_outputs, ignored=ignored)

    def _ptq(self, _folder: Path) -> Made:
        recipe = load_calibration(self.job.config.calibration)
        return Made(self._quantized(self._start(), recipe), recipe, _how(recipe, self._train))

    def _better_ranges(self, _folder: Path) -> Made:
        """Every other way of reading ranges, and ten times the pictures where there are more, by val loss."""
        stated = load_calibration(self.job.config.calibration)
        more = load_calibration("thorough")
        tried = [stated.model_copy(update={"range": one}) for one in ("minmax", "percentile", "histogram")]
        if more.count > stated.count and self._train > stated.count:
            tried.append(more.model_copy(update={"range": stated.range}))
        found = []
        for recipe in tried:
            if recipe == stated:
                continue
            model = self._quantized(self._start(), recipe)
            found.append((self._loss_of(model), Made(model, recipe, _how(recipe, self._train))))
        best = min(found, key=lambda one: one[0])[1]
        losses = {made.how: loss for loss, made in found}
        return replace(best, fields={"tried": losses})

    def _trained(self, folder: Path, share: float) -> Made:
        """The best so far, trained on, with the epochs of the recipe times ``share``."""
        best = self._best()
        model = best.load(self.job.run)
        metrics = self._fit(self._plan(share).again(len(self.rungs)), model, folder)
        epochs = int(metrics.get("training", {}).get("epochs", 0))
        return Made(
            model,
            CalibrationRecipe.model_validate(best.record["calibration"]),
            f"{epochs} epochs from {best.name}",
            {"epochs": epochs, "from": best.name},
        )

    def _in_float(self, folder: Path, count: int) -> Made:
        """The layers that int8 hurts most in float, fresh ranges, and a short training."""
        best = next((rung for rung in self.rungs if rung.name == "float-1"), None)
        basis = self._basis()
        model = basis.load(self.job.run)
        table = list(best.record["sensitivity"]) if best else self._sensitivity(model)
        ignored = tuple(str(row["layer"]) for row in table[:count])
        recipe = CalibrationRecipe.model_validate(basis.record["calibration"])
        # Trained weights made up for the rounding of layers that are in float now: the untrained may be ahead again.
        starts = [remove_quantizers(model), *([self._start()] if basis.record.get("epochs") else [])]
        mixed = min((self._quantized(start, recipe, ignored) for start in starts), key=self._loss_of)
        fields: dict[str, Any] = {"float_layers": list(ignored), "sensitivity": table, "from": basis.name}
        if self.job.config.epochs:
            metrics = self._fit(self._plan(SHORT_QAT).again(len(self.rungs)), mixed, folder)
            fields["epochs"] = int(metrics.get("training", {}).get("epochs", 0))
        return Made(mixed, recipe, f"float: {', '.join(ignored)}", fields)

    def _basis(self) -> Rung:
        """What layers are taken back to float in: the best rung that has none in float yet."""
        whole = [rung for rung in self.rungs if not rung.record.get("float_layers")]
        return min(whole, key=lambda rung: rung.loss)

    def _sensitivity(self, model: nn.Module) -> list[dict[str, Any]]:
        step = -(-len(self._pictures) // _SENSITIVITY_PICTURES)
        some = self._pictures.part(0, step)
        labels, spec = np.array(some.labels, np.int64), self.source.preprocess
        recipe = load_calibration(self.job.config.calibration)
        example = CalibrationBatches(calibration_set(self.job.workspace, recipe, self.source), spec)[0][:2]
        with self.job.console.task("what each layer costs in int8") as progress:
            found = layer_sensitivity(
                model,
                lambda one: float(nll(logits(one, some, spec), labels).mean()),
                example=example,
                progress=progress,
            )
        return [{"layer": one.layer, "loss_increase": one.loss_increase} for one in found]

    def _plan(self, share: float) -> TrainingPlan:
        plan = TrainingPlan.for_qat(self.job.config, **training_recipe(self.job), share=share)
        left = self._left()
        if left == float("inf"):
            return plan
        return replace(plan, loop=replace(plan.loop, time_seconds=max(left, 1.0)))

    def _fit(self, plan: TrainingPlan, model: nn.Module, folder: Path) -> dict[str, Any]:
        job, spec = self.job, self.source.preprocess
        return fit(plan, model, job.workspace, spec, folder=folder, console=job.console, teacher=job.teacher)
