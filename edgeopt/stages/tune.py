"""``edgeopt tune``: a hyperparameter search by real fine-tunings, shared by any number of processes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeopt import environment
from edgeopt.config import Recipe, listed, search_space
from edgeopt.console import Console, Silent
from edgeopt.data.cache import Shelf
from edgeopt.errors import ConfigError, ModelError, TrainingError
from edgeopt.files import make_folder, read_text, write_json, write_text
from edgeopt.models.builders import require_known, split_name
from edgeopt.recipe_text import recipe_text
from edgeopt.run import Run, now, stage_key
from edgeopt.stages.problems import raise_together, training_problems
from edgeopt.stages.starting import inputs_of, start
from edgeopt.stages.workspace import Workspace, open_workspace
from edgeopt.train.losses import takes_soft_targets
from edgeopt.train.optimizer import require_known_optimizer
from edgeopt.training_tables import selection
from edgeopt.tune_space import Choice, Space
from edgeopt.tuning import crew
from edgeopt.tuning.defaults import baseline, default_space
from edgeopt.tuning.page import render
from edgeopt.tuning.result import TrialRow, TuneResult, best_of, certainty, importances, rows
from edgeopt.tuning.study import StudyFolder, make_pruner
from edgeopt.tuning.trial import WAIT_SECONDS, Search, applies, label, with_parameters

VERSION = 1
_HEAD = "Made by edgeopt tune"


def tune(
    recipe: Recipe,
    *,
    run: Path | None = None,
    out: Path | None = None,
    console: Console | None = None,
) -> TuneResult:
    """Search ``recipe.tune.space`` for the values that score best on val; test is never looked at.

    Each trial fine-tunes as ``recipe`` says with its own values of the space's keys. The first one has the recipe's
    own, so that the best is never worse on val. The study lives in ``tune/`` of the run folder ``run`` (default: under
    ``./runs``): the same call goes on with it, after a kill too, and calls of several processes share it. The best
    values are written as a recipe to ``out`` (default: ``tuned.toml`` beside the page). Raises ConfigError with every
    problem of the space, DataError, ModelError, RunError, and TrainingError when the first trials all fail or none was
    completed.
    """
    console, started = console or Silent(), time.monotonic()
    space = _checked_space(recipe, console)
    _require_writable(out)
    search = _open(recipe, space, run, console, started)
    parameters, absent = baseline(space, recipe)
    if absent:
        console.say(
            f"the first trial has the recipe's values but for {', '.join(absent)}: the space does not have them"
        )
    study = search.study
    study.first({key: label(value) for key, value in parameters.items()})
    if recipe.tune.workers == 1:
        with study.working():
            crew.work(search, console)
    else:
        crew.lead(search, console)
    return _concluded(search, out, console)


def reopened(recipe: Recipe, folder: Path, *, until: float | None) -> Search:
    """The search of ``recipe`` whose study is in ``folder`` of a run, for one more worker that this process started.

    ``until`` is when time is over, in seconds as time.time() gives them.
    """
    space = search_space(recipe.tune)
    deadline = None if until is None else time.monotonic() + until - time.time()
    workspace = open_workspace(Run.open(folder.parent.parent))
    return replace(_search(recipe, space, workspace, folder, deadline), leader=os.getppid())


def _checked_space(recipe: Recipe, console: Console) -> Space:
    """The space, after everything that is wrong with it or the recipe was said at once."""
    train = recipe.train
    raise_together(training_problems(train, recipe.augment, recipe.model), where="training")
    space = search_space(recipe.tune)
    problems = []
    for key, check in (("model.name", lambda name: require_known(*split_name(name))),
                       ("train.optimizer", require_known_optimizer), ("train.loss", takes_soft_targets)):  # fmt: skip
        parameter = space.get(key)
        for value in parameter.values if isinstance(parameter, Choice) else ():
            try:
                check(value)
            except (ModelError, ConfigError) as error:
                problems.append(f"tune.space.{key}: {error.message}")
    if problems:
        raise ConfigError(listed(problems, where="tune.space"), fix="correct the search space")
    if not space:
        space = default_space(recipe)
        console.say(f"searching the default space: {', '.join(space)}")
    for key in _never_drawn(recipe, space):
        console.say(f"note: {key} is never drawn: beside the recipe, part of it contradicts what else there is")
    if train.folds is not None:
        console.say(f"note: a trial is one training; the {train.folds} folds are for the recipe that is found")
    return space


def _never_drawn(recipe: Recipe, space: Space) -> list[str]:
    """Keys that contradict the recipe whatever single other choice is drawn beside them."""
    others: list[dict[str, Any]] = [
        {},
        *({key: value} for key, one in space.items() if isinstance(one, Choice) for value in one.values),
    ]
    return [
        key
        for key, one in space.items()
        if not any(applies(recipe, drawn, key, one) for drawn in others if key not in drawn)
    ]


def _require_writable(out: Path | None) -> None:
    """An existing file is only overwritten when an earlier call made it."""
    if out is not None and out.exists() and not read_text(out).startswith(f"# {_HEAD}"):
        raise ConfigError(f"{out} exists already", fix="give another name, as in --out tuned.toml")


def _open(recipe: Recipe, space: Space, path: Path | None, console: Console, started: float) -> Search:
    """The study of this recipe and space on these pictures, opened or made."""
    workspace = start(recipe.data, path, console, wait_seconds=WAIT_SECONDS)
    inputs = inputs_of(workspace.run, recipe.model)
    trained = recipe.model_dump(mode="json", include={"data", "model", "train", "augment"})
    del trained["data"]["path"], trained["data"]["exclude"]
    key = stage_key(inputs=inputs, config={**trained, "space": {k: repr(v) for k, v in space.items()}}, version=VERSION)
    folder = make_folder(workspace.run.path / "tune" / key[:8])
    stated = recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"space": _stated(space)})})
    if not (folder / "study.json").is_file():
        record = {"schema": 1, "key": key, "created": now(), "recipe": stated.model_dump(mode="json")}
        write_json(folder / "study.json", {**record, "versions": environment.versions()})
    console.say(f"study: {folder}")
    deadline = None if recipe.tune.time is None else started + recipe.tune.time
    return _search(stated, space, workspace, folder, deadline)


def _search(recipe: Recipe, space: Space, workspace: Workspace, folder: Path, deadline: float | None) -> Search:
    pruner = make_pruner(recipe.tune.pruner, recipe.train.epochs)
    study = StudyFolder(folder, pruner=pruner, seed=recipe.tune.seed)
    # Trials whose loss differs must still be compared by one figure.
    train = recipe.train.model_copy(update={"select": selection(recipe.train)})
    fixed = Recipe.model_validate(
        {**recipe.model_dump(exclude_unset=True), "train": train.model_dump(exclude_unset=True)}
    )
    shelf = Shelf(processes=recipe.tune.workers)
    return Search(fixed, space, replace(workspace, shelf=shelf), study, deadline)


def _stated(space: Space) -> dict[str, Any]:
    """The space as a recipe states it."""
    found: dict[str, Any] = {}
    for key, one in space.items():
        if isinstance(one, Choice):
            found[key] = [list(value) if isinstance(value, tuple) else value for value in one.values]
        else:
            found[key] = {"low": one.low, "high": one.high, "log": one.log}
            found[key] |= {"step": one.step} if one.step is not None else {}
    return found


def _concluded(search: Search, out: Path | None, console: Console) -> TuneResult:
    """The result, its recipe and its page written; raises TrainingError when no trial was completed."""
    study, workspace = search.study, search.workspace
    trials = rows(study.study, search.space)
    best, count = best_of(trials), len(workspace.dataset.of("val"))
    interval, gain = certainty(study.study, trials, count)
    shares, method = importances(study.study, trials)
    result = TuneResult(
        run=workspace.run.path,
        folder=study.folder,
        score=selection(search.recipe.train),
        val_pictures=count,
        trials=trials,
        best=best,
        best_ci=interval,
        gain=gain,
        importances=shares,
        importance_method=method,
        notes=tuple(_notes(trials, best, count)),
        recipe=None if best is None else (out or study.folder / "tuned.toml"),
        html=study.folder / "tune.html",
    )
    if best is not None and result.recipe is not None:
        write_text(result.recipe, tuned_recipe(search.recipe, result, name=result.recipe.name))
    write_json(study.folder / "tune.json", result.to_json())
    write_text(result.html, render(result))
    if best is None:
        reasons = [one.reason for one in trials if one.reason]
        raise TrainingError(
            f"no trial was completed ({len(trials)} begun; {reasons[-1] if reasons else 'time was over'})",
            fix="the same command with more --time goes on; or begin with fewer --epochs",
        )
    return result


def tuned_recipe(recipe: Recipe, result: TuneResult, *, name: str) -> str:
    """The text of the recipe with the best trial's values, complete and fit for ``edgeopt run``."""
    assert result.best is not None
    best = with_parameters(recipe, result.best.parameters)
    train = best.train
    if selection(train.model_copy(update={"select": "auto"})) == train.select:
        train = train.model_copy(update={"select": "auto"})
    head = [
        f"{_HEAD} on {datetime.now(timezone.utc):%Y-%m-%d}: trial {result.best.number}, the best of "
        f"{result.count('complete')} completed ones, {_score(result)} on {result.val_pictures} val pictures.",
        "It was picked by that figure, so expect less on pictures it was not picked on; `edgeopt run` measures that.",
        *(f"  {key} = {value}" for key, value in result.best.parameters.items()),
    ]
    return recipe_text(best.model_copy(update={"train": train}), head, name=name)


def _score(result: TuneResult) -> str:
    kind = "top-1" if result.score == "top1" else "mean recall"
    return f"{kind} {result.best.score:.2%}" if result.best and result.best.score is not None else kind


def _notes(trials: tuple[TrialRow, ...], best: TrialRow | None, count: int) -> list[str]:
    """What a reader of the numbers has to know."""
    notes = []
    complete = sum(one.state == "complete" for one in trials)
    if best is not None:
        notes.append(
            f"The best score was picked from {complete} on the same {count} val pictures, so it is optimistic; "
            "`edgeopt run` trains the recipe and measures it on test, which no trial has seen."
        )
    failures: Mapping[str, int] = {
        reason: sum(one.reason == reason and one.state == "failed" for one in trials)
        for reason in dict.fromkeys(one.reason for one in trials if one.state == "failed")
    }
    notes += [f"{number} failed: {reason}" for reason, number in failures.items()]
    return notes
