"""Opened ensembles: their members loaded, their answers combined, and judged on test."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeopt import records
from edgeopt.bench.records import accuracy_record, write_accuracy
from edgeopt.console import Console, Silent
from edgeopt.errors import RunError
from edgeopt.files import read_npy
from edgeopt.metrics import Float64, Int64, softmax
from edgeopt.predict import Prediction, classify
from edgeopt.preprocess import PreprocessSpec, UInt8, normalize
from edgeopt.run import Run
from edgeopt.sets import PictureSet
from edgeopt.stages.bench import prepared_test
from edgeopt.stages.engines import labels
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.train.evaluate_torch import logits
from edgeopt.train.processes import training_device
from edgeopt.train.teacher import Voter
from edgeopt.voting import Combination

_HELP = {"soft": "mean of", "hard": "votes of", "weighted": "weighted mean of", "stacking": "stacking of"}


@dataclass(frozen=True)
class Ensemble:
    """A committed ensemble of a run; ``skipped`` when it was made by an earlier call."""

    run: Run
    name: str
    record: Mapping[str, Any]
    skipped: bool

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(str(member["variant"]) for member in self.record["members"])

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"run": str(self.run.path), "ensemble": self.name, "skipped": self.skipped, **self.record}

    def summary(self) -> str:
        """One line for a person."""
        metrics = self.record["metrics"]
        words = f"{self.run.path}: {self.name}, {_HELP[self.record['vote']]} {', '.join(self.members)}"
        if self.record.get("weights"):
            words += f" (weights {', '.join(f'{weight:.2f}' for weight in self.record['weights'])})"
        best = next(one for one in self.record["members"] if one["variant"] == self.record["best_member"])
        words += f", val top-1 {metrics['val_top1']:.2%} (its best member {best['val_top1']:.2%})"
        return words + (" (made before, unchanged)" if self.skipped else "")

    def combination(self) -> Combination:
        """How its members' answers become one; the coefficients' hash is checked."""
        weights = self.record.get("weights")
        coefficients: Float64 | None = None
        if self.record["vote"] == "stacking":
            coefficients = read_npy(self.run.output(self.record, "coefficients"), "<f8")
            classes = len(labels(self.run))
            if coefficients.shape != (len(self.members) * classes + 1, classes) or not np.isfinite(coefficients).all():
                raise RunError(
                    f"the coefficients of {self.name} do not fit its members and classes",
                    fix=records.EnsembleRecord.fix,
                )
        return Combination(self.record["vote"], tuple(weights) if weights else None, coefficients)

    def require_whole(self) -> None:
        """Raise RunError when a member is not there any more as it was."""
        if self.run.outdated(self.record):
            raise RunError(
                f"a member of {self.name} was removed or made again since",
                fix=f"make the ensemble again: edgeopt ensemble {' '.join(self.members)} --vote {self.record['vote']}",
            )

    def voters(self) -> tuple[Voter, ...]:
        """Its members' models; RunError when one is not there any more as it was."""
        self.require_whole()
        return tuple(
            voter_of(open_variant(self.run, str(one["variant"])), float(one["temperature"]))
            for one in self.record["members"]
        )


def open_ensemble(run: Run, name: str) -> Ensemble:
    """A committed ensemble by name."""
    return Ensemble(run, name, run.ensembles()[name], skipped=True)


def voter_of(variant: Variant, temperature: float | None = None) -> Voter:
    """A variant as a member, with the temperature fitted on val for it unless another is stated."""
    if temperature is None:
        temperature = float((variant.record.get("metrics") or {}).get("temperature") or 1.0)
    return Voter(variant.load(), variant.preprocess, temperature)


def probabilities(voter: Voter, pictures: PictureSet) -> Float64:
    """float64 (N, classes) of a prepared set, at the member's temperature; the model is left on the CPU."""
    model = voter.model.to(training_device())
    try:
        return softmax(logits(model, pictures, voter.spec) / voter.temperature)
    finally:
        model.cpu()


def evaluate_ensemble(run: Run, name: str, *, console: Console | None = None) -> dict[str, Any]:
    """Accuracy of an ensemble on the test set, and its paired difference to its best member.

    As ``accuracy.json`` of an engine, with ``members`` (top-1 of each on the same pictures) and ``best_member``, which
    is the one that is best on val, not on test. It is written beside the ensemble unless the run cannot be written.
    """
    console = console or Silent()
    ensemble = open_ensemble(run, name)
    path = run.path / "host" / name / "accuracy.json"
    if path.is_file():
        kept = records.read(records.AccuracyRecord, path)
        if kept.get("build_key") == ensemble.record["key"] and _is_whole(kept):
            return {"ensemble": name, **kept}
    answers, truth = _on_test(ensemble, console)
    best = str(ensemble.record["best_member"])
    record = accuracy_record(
        ensemble.combination().log_probabilities(list(answers.values())),
        truth,
        labels(run),
        key=f"ensemble/{name}",
        baseline=f"pytorch/{best}",
        baseline_predictions=answers[best].argmax(axis=1).tolist(),
        temperature=float(ensemble.record["metrics"].get("temperature") or 1.0),
    )
    record |= {
        "build_key": ensemble.record["key"],
        "best_member": best,
        "members": {member: float((found.argmax(axis=1) == truth).mean()) for member, found in answers.items()},
    }
    if os.access(run.path, os.W_OK):
        with run.lock():
            write_accuracy(path.parent, record)
    return {"ensemble": name, **record}


def _is_whole(kept: Mapping[str, Any]) -> bool:
    """Whether figures found in the run have all that is said of an ensemble's."""
    if kept.get("best_member") not in (kept.get("members") or {}):
        return False
    return None not in (kept.get("drop_points"), kept.get("drop_ci_points"), (kept.get("drop") or {}).get("mcnemar_p"))


def _on_test(ensemble: Ensemble, console: Console) -> tuple[dict[str, Float64], Int64]:
    """Each member's probabilities on the test set, by its name, and the labels."""
    answers: dict[str, Float64] = {}
    truth: Int64 = np.zeros(0, np.int64)
    with console.task(f"accuracy of {ensemble.name}"):
        for member, voter in zip(ensemble.members, ensemble.voters(), strict=True):
            pictures = prepared_test(ensemble.run, voter.spec)
            answers[member], truth = probabilities(voter, pictures), np.array(pictures.labels, np.int64)
    return answers, truth


def predict_with(run: Run, name: str, images: Sequence[str], *, top: int = 5) -> tuple[list[Prediction], list[str]]:
    """Predictions of a variant in PyTorch, or of an ensemble, as :func:`edgeopt.predict.predict` gives them."""
    if name in run.ensembles():
        ensemble = open_ensemble(run, name)
        voters, combination = ensemble.voters(), ensemble.combination()
        temperature = float(ensemble.record["metrics"].get("temperature") or 1.0)
    else:
        voters, combination, temperature = (voter_of(open_variant(run, name)),), Combination("soft"), 1.0
    answer = _answerer(voters, combination)
    return classify(answer, images, [voter.spec for voter in voters], labels(run), top=top, temperature=temperature)


def _answerer(voters: Sequence[Voter], combination: Combination) -> Callable[[Mapping[PreprocessSpec, UInt8]], Float64]:
    """Log-probabilities (N, classes) of the same uint8 pictures, as each member's preprocessing makes them."""
    import torch

    def answer(pictures: Mapping[PreprocessSpec, UInt8]) -> Float64:
        with torch.inference_mode():
            found = [
                softmax(
                    voter.model(torch.from_numpy(normalize(pictures[voter.spec], voter.spec))).numpy()
                    / voter.temperature
                )
                for voter in voters
            ]
        return combination.log_probabilities(found)

    return answer
