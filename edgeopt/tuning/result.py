"""What a search came to: its trials in a table, the best with how sure that is, and what mattered."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from edgeopt.metrics import accuracy_interval, paired_drop
from edgeopt.tune_space import Choice, Parameter, Space
from edgeopt.tuning.trial import values_of

State = Literal["complete", "pruned", "failed", "running"]
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
_LEAST_FOR_IMPORTANCE = 8  # complete trials: of fewer, a forest tells noise


@dataclass(frozen=True)
class TrialRow:
    """A trial. ``score`` is the best epoch's so far (0-1), ``epochs`` how many were judged, ``reason`` why it ended."""

    number: int
    state: State
    score: float | None
    epochs: int
    seconds: float | None
    parameters: dict[str, Any]
    reason: str = ""
    defaults: bool = False


@dataclass(frozen=True)
class Gain:
    """How many percentage points of val the best trial is ahead of the defaults, with the paired 95 % interval.

    Not corrected for the best having been picked on these pictures: the true gain is likely smaller.
    """

    points: float
    ci_points: tuple[float, float]


@dataclass(frozen=True)
class TuneResult:
    """``best`` is None while no trial is complete. ``score`` says what trials were compared by, on ``val_pictures``.

    ``importances`` are shares of the variance of the score that each parameter explains (they add up to 1), by
    ``importance_method``; empty with fewer than 8 complete trials. ``recipe`` is the file written, ``html`` the page.
    """

    run: Path
    folder: Path
    score: Literal["top1", "recall"]
    val_pictures: int
    trials: tuple[TrialRow, ...]
    best: TrialRow | None
    best_ci: tuple[float, float] | None
    gain: Gain | None
    importances: dict[str, float]
    importance_method: str
    notes: tuple[str, ...]
    recipe: Path | None
    html: Path

    def count(self, state: State) -> int:
        """Trials that ended so."""
        return sum(row.state == state for row in self.trials)

    def to_json(self) -> dict[str, Any]:
        """``tune.json``."""
        values = asdict(self)
        for name in ("run", "folder", "recipe", "html"):
            values[name] = None if values[name] is None else str(values[name])
        return {"schema": 1, **values}


def rows(study: optuna.Study, space: Space) -> tuple[TrialRow, ...]:
    """Every trial that has begun, by number."""
    return tuple(row(one, space) for one in study.get_trials(deepcopy=False) if one.state in _STATES)


def row(frozen: FrozenTrial, space: Space) -> TrialRow:
    """One trial. One whose values are not of the space has failed: a stranger's journal must not choose a model."""
    steps, parameters = frozen.intermediate_values, values_of(frozen, space)
    foreign = [key for key, value in parameters.items() if not _within(value, space[key])]
    state = "failed" if foreign else _STATES[frozen.state]
    reason = f"{foreign[0]} is not of the space" if foreign else str(frozen.user_attrs.get("reason", ""))
    return TrialRow(
        number=frozen.number,
        state=state,
        score=max(steps.values(), default=None),
        epochs=max(steps, default=0),
        seconds=frozen.user_attrs.get("seconds"),
        parameters=parameters,
        reason=reason,
        defaults=bool(frozen.user_attrs.get("defaults", False)),
    )


def _within(value: Any, parameter: Parameter) -> bool:
    if isinstance(parameter, Choice):
        return any(value == one and type(value) is type(one) for one in parameter.values)
    return isinstance(value, (int, float)) and parameter.low <= value <= parameter.high


def best_of(trials: tuple[TrialRow, ...]) -> TrialRow | None:
    """The complete trial with the highest score; of equals the first, so that nothing changes for nothing."""
    complete = [one for one in trials if one.state == "complete" and one.score is not None]
    return max(complete, key=lambda one: (one.score or 0.0, -one.number), default=None)


def certainty(
    study: optuna.Study, trials: tuple[TrialRow, ...], val_pictures: int
) -> tuple[tuple[float, float] | None, Gain | None]:
    """The best trial's 95 % interval of val top-1, and its gain over the defaults."""
    best = best_of(trials)
    if best is None:
        return None, None
    answers = {one.number: _correct(one, val_pictures) for one in study.get_trials(deepcopy=False)}
    found = answers[best.number]
    first = next((one for one in trials if one.defaults and one.state == "complete"), None)
    reference = answers[first.number] if first is not None else None
    interval = accuracy_interval(found) if found is not None else None
    if found is None or reference is None or first is best:
        return interval, None
    drop = paired_drop(reference, found)
    return interval, Gain(-drop.drop_points, (-drop.ci_points[1], -drop.ci_points[0]))


def _correct(frozen: FrozenTrial, count: int) -> Any:
    """bool (N,): which val pictures the trial's model got right."""
    bits = np.frombuffer(bytes.fromhex(str(frozen.user_attrs.get("correct", ""))), np.uint8)
    return np.unpackbits(bits, count=count).astype(bool) if len(bits) * 8 >= count > 0 else None


def importances(study: optuna.Study, trials: tuple[TrialRow, ...]) -> tuple[dict[str, float], str]:
    """Shares by parameter, largest first, and the method; nothing when there are too few trials to tell.

    fANOVA (Hutter et al. 2014, https://proceedings.mlr.press/v32/hutter14.html) where scikit-learn is installed, else
    PED-ANOVA (Watanabe et al. 2023, https://arxiv.org/abs/2304.10255). Of trials that were not pruned, and of
    parameters that all of these have.
    """
    complete = [one for one in trials if one.state == "complete"]
    if len(complete) < _LEAST_FOR_IMPORTANCE or len({one.score for one in complete}) < 2:
        return {}, ""
    forest = find_spec("sklearn") is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = (
            optuna.importance.FanovaImportanceEvaluator(seed=0)
            if forest
            else optuna.importance.PedAnovaImportanceEvaluator()
        )
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    shares = {name: float(value) for name, value in found.items() if value == value}
    return dict(sorted(shares.items(), key=lambda item: -item[1])), "fANOVA" if forest else "PED-ANOVA"
