"""One trial: parameters are drawn, the recipe with them is fine-tuned, and val judges it after each epoch."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from edgeopt.config import Recipe, validate
from edgeopt.console import Console, Silent
from edgeopt.errors import ConfigError, ModelError, TrainingError, disk_trouble
from edgeopt.stages.starting import order_of
from edgeopt.stages.training import TrainingPlan, fit
from edgeopt.stages.workspace import Workspace
from edgeopt.train.evaluate_torch import logits
from edgeopt.train.memory import release
from edgeopt.training_tables import contradictions
from edgeopt.tune_space import Choice, Parameter, Range, Space, with_value
from edgeopt.tuning.study import StudyFolder

#: A run is held by a worker only while val is prepared, and by a starting search while it looks around.
WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Search:
    """What all trials share: the recipe they vary, the space, the pictures, and when (monotonic) time is over.

    ``leader`` is the process that started this one for the study, if one did.
    """

    recipe: Recipe
    space: Space
    workspace: Workspace
    study: StudyFolder
    deadline: float | None = None
    leader: int | None = None


def run_trial(search: Search, trial: optuna.Trial, console: Console) -> FrozenTrial:
    """Draw, train and judge; returns the finished trial, which may have been pruned or have failed, with the reason.

    Raises KeyboardInterrupt and leaves the trial to be gone on with; a full disk or missing pictures are raised too:
    the trial is not to blame for them.
    """
    study, started = search.study, time.monotonic()
    folder = study.folder / "trials" / f"{trial.number:04d}"
    recipe: Recipe | None = None
    try:
        recipe = with_parameters(search.recipe, draw(search, trial))
        attributes = _train(search, recipe, trial, folder)
        score = max(value for value in _reported(trial).values())
        done = study.finish(trial, TrialState.COMPLETE, score=score, seconds=_since(started), **attributes)
    except optuna.TrialPruned as stop:
        done = study.finish(trial, TrialState.PRUNED, reason=str(stop), seconds=_since(started))
    except (TrainingError, ModelError, ConfigError, RuntimeError, ValueError) as error:
        if disk_trouble(error):
            study.release(trial)
            raise
        line = str(getattr(error, "message", error)).replace("\n", " ")[:300] or type(error).__name__
        done = study.finish(trial, TrialState.FAIL, reason=line, seconds=_since(started))
    except BaseException:
        study.release(trial)
        raise
    finally:
        release()
    _keep_log_alone(folder)
    return done


def draw(search: Search, trial: optuna.Trial) -> dict[str, Any]:
    """A value for every key that means something beside the others: ``train.lr_decay`` is drawn for ``step`` alone."""
    drawn: dict[str, Any] = {}
    # Choices first: they decide what else applies.
    for key, parameter in sorted(search.space.items(), key=lambda item: isinstance(item[1], Range)):
        if applies(search.recipe, drawn, key, parameter):
            drawn[key] = _suggest(trial, key, parameter)
    return drawn


def with_parameters(recipe: Recipe, parameters: Mapping[str, Any]) -> Recipe:
    """The recipe with these values of dotted keys; raises ConfigError when they contradict one another."""
    return validate(Recipe, _varied(recipe, parameters), where="trial")


def _varied(recipe: Recipe, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe states, with these values of dotted keys."""
    values: dict[str, Any] = recipe.model_dump(exclude_unset=True)
    for key, value in parameters.items():
        values = with_value(values, key, value)
    return values


def label(value: Any) -> Any:
    """A choice's value as Optuna stores it: itself, or JSON for what is several numbers."""
    return json.dumps(value) if isinstance(value, (tuple, list)) else value


def values_of(frozen: FrozenTrial, space: Space) -> dict[str, Any]:
    """The parameters of a trial, by the recipe's keys."""
    found = {}
    for key, parameter in space.items():
        if key in frozen.params:
            stored = frozen.params[key]
            options = parameter.values if isinstance(parameter, Choice) else ()
            found[key] = next((one for one in options if isinstance(one, tuple) and label(one) == stored), stored)
    return found


def _suggest(trial: optuna.Trial, key: str, parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        chosen = trial.suggest_categorical(key, [label(one) for one in parameter.values])
        return next(one for one in parameter.values if label(one) == chosen and type(label(one)) is type(chosen))
    if parameter.integer:
        step = int(parameter.step or 1)
        return trial.suggest_int(key, int(parameter.low), int(parameter.high), step=step, log=parameter.log)
    return trial.suggest_float(key, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def applies(recipe: Recipe, drawn: Mapping[str, Any], key: str, parameter: Parameter) -> bool:
    """Whether ``key`` can be drawn beside ``drawn``: all of a range, or some value of a choice, contradicts nothing."""
    if not key.startswith(("train.", "augment.")):
        return True
    allowed = (not _refused(recipe, {**drawn, key: one}, key) for one in parameter.examples)
    return all(allowed) if isinstance(parameter, Range) else any(allowed)


def _refused(recipe: Recipe, parameters: Mapping[str, Any], key: str) -> bool:
    return any(problem.startswith(f"{key}:") for problem in contradicted(recipe, parameters))


def contradicted(recipe: Recipe, parameters: Mapping[str, Any]) -> list[str]:
    """What cannot hold together in the tables of a trial with these values of dotted keys."""
    tried = Recipe.model_validate(_varied(recipe, parameters))
    return contradictions(tried.train, tried.augment, random_weights=tried.model.random_weights)


def _train(search: Search, recipe: Recipe, trial: optuna.Trial, folder: Path) -> dict[str, Any]:
    quiet = Silent()
    workspace = replace(search.workspace, data=recipe.data, console=quiet)
    order = order_of(workspace, recipe.data, recipe.model, recipe.train, recipe.augment, force=False, console=quiet)
    created, spec = order.create()
    # Written once, for all workers.
    with nullcontext() if workspace.is_prepared("val", spec) else workspace.run.lock(WAIT_SECONDS):
        pictures = workspace.prepared("val", spec)
    plan = TrainingPlan.for_finetuning(recipe.train, recipe.augment)
    watch = _Watch(search, trial, recipe.train.epochs)
    figures = fit(
        plan,
        created.model,
        workspace,
        spec,
        folder=folder,
        console=quiet,
        teacher=order.teacher,
        epoch_end=watch,
    )
    answers = logits(created.model, pictures, spec)
    correct = answers.argmax(axis=1) == np.asarray(pictures.labels)
    return {
        "val_top1": float(figures["val_top1"]),
        "val_loss": float(figures["val_loss"]),
        "best_epoch": int(figures["training"]["best_epoch"]),
        "correct": np.packbits(correct).tobytes().hex(),  # one bit a val picture: trials are compared pairwise
    }


class _Watch:
    """Reports each epoch's best score so far; ends the trial when it is not worth going on, or time is over."""

    def __init__(self, search: Search, trial: optuna.Trial, epochs: int) -> None:
        self._search, self._trial, self._epochs = search, trial, epochs
        self._reported = _reported(trial)

    def __call__(self, epoch: int, score: float, last: bool) -> None:
        if epoch not in self._reported:  # one that was taken up again may see an epoch twice
            self._trial.report(score, epoch)
        if self._search.leader not in (None, os.getppid()):
            raise KeyboardInterrupt  # it is gone, and nobody waits for this worker
        if last:
            return
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"not worth going on after epoch {epoch} of {self._epochs}")
        if self._search.deadline is not None and time.monotonic() >= self._search.deadline:
            raise optuna.TrialPruned(f"time was over after epoch {epoch} of {self._epochs}")


def _reported(trial: optuna.Trial) -> dict[int, float]:
    frozen = next(one for one in trial.study.get_trials(deepcopy=False) if one.number == trial.number)
    return dict(frozen.intermediate_values)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def _keep_log_alone(folder: Path) -> None:
    """Weights of trials are not kept: the recipe that is written makes the best one's again."""
    log = folder / "log.jsonl"
    with suppress(FileNotFoundError):
        log.replace(folder.with_suffix(".jsonl"))
    shutil.rmtree(folder, ignore_errors=True)
