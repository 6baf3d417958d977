"""Hyperparameter search: the best values are found and written, trials are pruned, shared, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from click.testing import CliRunner
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from torch import nn

from edgeopt import Recipe, TuneConfig, load_recipe
from edgeopt.api import tune
from edgeopt.cli import group
from edgeopt.cli.tune_cmd import search_recipe
from edgeopt.config import search_space, validate
from edgeopt.console import Silent
from edgeopt.data.dataset import Dataset
from edgeopt.errors import ConfigError, RunError, TrainingError
from edgeopt.recipe_text import recipe_text
from edgeopt.run import Run
from edgeopt.stages.tune import _search
from edgeopt.stages.workspace import Workspace
from edgeopt.tune_space import Choice, Range, read_space
from edgeopt.tuning.defaults import baseline, default_space
from edgeopt.tuning.result import TuneResult, best_of, importances, rows
from edgeopt.tuning.study import StudyFolder, make_pruner
from edgeopt.tuning.trial import _Watch
from tests.listening import Listening

GOOD, BAD = 0.01, 1e-7


class Tiny(nn.Module):
    """A network that learns the painted pictures in an epoch or two."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        if width > 100:
            raise ValueError("too wide a network for this test")
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits."""
        answer: torch.Tensor = self.classifier(self.features(pictures).mean(dim=(2, 3)))
        return answer


class Other(Tiny):
    """Another name."""


class Deep(Tiny):
    """A network of several widths, which must be a tuple, as hashable as the rest of its recipe."""

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (8,)) -> None:
        super().__init__(num_classes, widths[-1])
        assert isinstance(widths, tuple)
        layers: list[nn.Module] = []
        for before, width in pairwise((3, *widths)):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)


TRAIN: dict[str, Any] = {
    "epochs": 2, "lr": GOOD, "batch_size": 8, "layer_decay": 1.0, "augment": "none", "flip": False, "ema_decay": 0.0,
    "precision": "fp32", "memory_format": "contiguous", "warmup_epochs": 0.0, "seed": 1,
}  # fmt: skip


def recipe_of(
    pictures: Path, space: Mapping[str, Any], *, train: Mapping[str, Any] | None = None, **settings: Any
) -> Recipe:
    values = {
        "data": {"path": str(pictures), "image_size": 16},
        "model": {"name": "test_tune:Tiny", "pretrained": False},
        "train": {**TRAIN, **(train or {})},
        "tune": {"space": dict(space), **settings},
    }
    return validate(Recipe, values, where="test")


def study_of(result: TuneResult) -> optuna.Study:
    return StudyFolder(result.folder).study


# --- what may be searched -----------------------------------------------------------------------------------------


def test_every_problem_of_a_space_is_said_at_once_with_suggestions() -> None:
    space = {
        "train.lrr": [1e-3],
        "mixup": [0.1],
        "train": {"lr": {"low": 1e-2, "high": 1e-4}, "epochs": [3, 4], "weight_decay": {"low": 0, "hihg": 1}},
        "train.dropout": {"low": 0.0, "high": 1.5},
        "train.batch_size": [],
        "train.schedule": ["cosine", "cosinus"],
        "train.momentum": 0.9,
        "train.clip_grad": {"low": 0.0, "high": 1.0, "log": True},
        "augment.blur": [1.0, 1.0],
        "compress.prune": [0.3],
        "data.seed": [1, 2],
        "train.folds": [2, 3],
        "train.time": ["1m", "2m"],
        "train.ema_decay": {"low": 0.9, "high": 0.99, "step": -1},
    }
    with pytest.raises(ConfigError) as caught:
        validate(Recipe, {"data": {"path": "x", "pth": 1}, "tune": {"space": space, "time": "soon"}}, where="recipe")
    text = str(caught.value)
    assert "18 problems" in text, text
    for said in (
        "data.pth: unknown key",
        "tune.time: no time; write 20m, 1h30m or 90s",
        'train.lrr: unknown key of a recipe (did you mean "train.lr"?)',
        'mixup: unknown key of a recipe (did you mean "augment.mixup"?)',
        "train.lr: low must be under high, got 0.01 and 0.0001",
        "train.epochs: is the same for every trial",
        '(did you mean "high"?)',
        "train.dropout: input should be less than 1, got 1.5",
        "train.batch_size: the list has no values",
        "train.schedule: input should be 'cosine'",
        "train.momentum: must be a list of values, or a range",
        "train.clip_grad: low must be positive where log is true",
        "augment.blur: the list has 1.0 twice",
        "compress.prune: is no part of a trial",
        "data.seed: is the same for every trial",
        "train.folds: is the same for every trial",
        "train.time: is the same for every trial",
        "train.ema_decay: step must be positive",
    ):
        assert said in text, said


def test_names_that_no_registry_has_are_refused_before_any_picture_is_read(pictures: Path) -> None:
    space = {"model.name": ["resnet18", "resnet81"], "train.optimizer": ["adamw", "adamv"]}
    with pytest.raises(ConfigError) as caught:
        tune(recipe_of(pictures / "nowhere", space))
    assert "2 problems" in str(caught.value)
    assert 'did you mean "resnet18"' in str(caught.value)


def test_integers_are_drawn_where_only_integers_are_taken() -> None:
    ranges = {"train.batch_size": (8, 64), "augment.mixup": (0, 1), "model.arguments.depth": (1, 3)}
    stated = {key: {"low": low, "high": high} for key, (low, high) in ranges.items()}
    space, problems = read_space({**stated, "model.arguments.depths": [[1, 2], [3, 4]]}, Recipe)
    assert not problems
    whole = {key: one.integer for key, one in space.items() if isinstance(one, Range)}
    assert whole == {"train.batch_size": True, "augment.mixup": False, "model.arguments.depth": True}
    assert space["model.arguments.depths"] == Choice(((1, 2), (3, 4)))


@pytest.mark.parametrize(("stated", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), (12.5, 12.5)])
def test_time_is_seconds_or_a_text_as_for_training(stated: Any, seconds: float) -> None:
    assert TuneConfig(time=stated).time == seconds
    assert TuneConfig(time=stated).most is None
    assert TuneConfig(time=stated, trials=3).most == 3
    assert TuneConfig().most == 20


def test_the_space_searched_by_default_is_what_loss_and_model_can_take(pictures: Path) -> None:
    own = recipe_of(pictures, {})
    assert set(default_space(own)) == {
        "train.lr", "train.weight_decay", "train.schedule", "train.layer_decay", "train.augment", "augment.mixup",
        "train.label_smoothing",
    }  # fmt: skip
    assert default_space(own)["train.lr"] == Range(GOOD / 10, GOOD * 10, log=True)
    hard = recipe_of(pictures, {}, train={"loss": "focal"})
    hard = hard.model_copy(update={"model": hard.model.model_copy(update={"name": "test_resnet"})})
    space = default_space(hard)
    assert space["train.augment"] == Choice(("light", "default"))
    assert not {"augment.mixup", "train.label_smoothing"} & set(space)
    assert {"train.dropout", "train.drop_path"} <= set(space)
    # The default space is one that a recipe could state, too.
    first, absent = baseline(space, hard)
    assert first["train.dropout"] is None
    assert absent == ["train.layer_decay"] or absent == ["train.augment"], absent


def test_the_first_trial_has_the_recipes_own_values_where_the_space_has_them(pictures: Path) -> None:
    space = {
        "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "train.weight_decay": {"low": 0.1, "high": 0.2},
        "train.label_smoothing": [0.0, 0.1],
        "augment.mixup": [0.2, 0.0],
        "train.lr_decay": {"low": 0.1, "high": 0.5},
        "train.batch_size": [16, 32],
    }
    recipe = recipe_of(pictures, space, train={"lr": 2e-3})
    found, absent = baseline(search_space(recipe.tune), recipe)
    assert found == {
        "train.lr": 2e-3, "train.weight_decay": 0.1, "train.label_smoothing": 0.1, "augment.mixup": 0.0,
        "train.batch_size": 16,
    }  # fmt: skip
    assert absent == ["train.weight_decay", "train.batch_size"]


# --- searching ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, TuneResult]:
    """A search whose defaults hardly learn, over what also has a cure, and a way to fail. Read only."""
    space = {
        "train.lr": [BAD, GOOD],
        "train.schedule": ["cosine", "step"],
        "train.lr_decay": {"low": 0.1, "high": 0.5},
        "model.arguments.width": [8, 1000],
    }
    recipe = recipe_of(pictures, space, train={"lr": BAD}, trials=9, pruner="none")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the networks' random weights are drawn from the process's generator
        return recipe, tune(recipe, run=tmp_path_factory.mktemp("searched") / "run")


def test_the_planted_good_value_is_found_and_is_ahead_of_the_defaults(searched: tuple[Recipe, TuneResult]) -> None:
    _, result = searched
    assert len(result.trials) == 9
    first, best = result.trials[0], result.best
    assert best is not None
    assert first.defaults
    assert first.parameters == {"train.lr": BAD, "train.schedule": "cosine", "model.arguments.width": 8}
    assert best.parameters["train.lr"] == GOOD
    assert best.score == max(one.score for one in result.trials if one.state == "complete" and one.score is not None)
    assert first.score is not None
    assert best.score > first.score + 0.3
    assert result.gain is not None
    assert result.gain.points > 30
    assert result.gain.ci_points[0] < result.gain.points < result.gain.ci_points[1]
    assert any("optimistic" in note for note in result.notes)


def test_what_means_nothing_beside_the_others_is_not_drawn(searched: tuple[Recipe, TuneResult]) -> None:
    _, result = searched
    schedules = {one.parameters["train.schedule"] for one in result.trials}
    assert schedules == {"cosine", "step"}
    for one in result.trials:
        assert ("train.lr_decay" in one.parameters) == (one.parameters["train.schedule"] == "step")


def test_failed_trials_are_kept_with_their_reason_and_shown(searched: tuple[Recipe, TuneResult]) -> None:
    _, result = searched
    failed = [one for one in result.trials if one.state == "failed"]
    assert failed
    assert {one.parameters["model.arguments.width"] for one in failed} == {1000}
    assert all("too wide a network for this test" in one.reason for one in failed)
    assert any(note.startswith(f"{len(failed)} failed: ") for note in result.notes)
    assert "too wide a network for this test" in result.html.read_text()


def test_the_recipe_written_is_the_best_trials_and_complete(searched: tuple[Recipe, TuneResult]) -> None:
    recipe, result = searched
    assert result.recipe is not None
    assert result.best is not None
    assert result.recipe.read_text().startswith("# Made by edgeopt tune on ")
    written = load_recipe(result.recipe)
    expected = recipe.model_dump(exclude={"tune"})
    for key, value in result.best.parameters.items():
        table: Any = expected
        *path, last = key.split(".")
        for part in path:
            table = table[part]
        table[last] = value
    expected["data"]["path"] = str(Path(recipe.data.path).absolute())
    assert written.model_dump(exclude={"tune"}) == expected
    assert written.tune == TuneConfig()


def test_no_weights_are_left_and_test_was_not_looked_at(searched: tuple[Recipe, TuneResult]) -> None:
    _, result = searched
    assert not list(result.run.rglob("*.safetensors"))
    assert list(result.run.glob("data/sets/*/val.npy"))
    assert not list(result.run.glob("data/sets/*/test*"))
    assert not list((result.run / "host").glob("*"))
    judged = {f"{one.number:04d}.jsonl" for one in result.trials if one.epochs}
    assert {path.name for path in (result.folder / "trials").iterdir()} == judged


def test_the_same_call_again_tries_nothing_again_and_a_larger_number_goes_on(
    searched: tuple[Recipe, TuneResult], tmp_path: Path
) -> None:
    recipe, result = searched
    again = tune(recipe, run=result.run, out=tmp_path / "mine.toml")
    assert again.trials == result.trials
    assert load_recipe(tmp_path / "mine.toml") == load_recipe(result.folder / "tuned.toml")
    (tmp_path / "other.toml").write_text("[data]\n")
    with pytest.raises(ConfigError, match="exists already"):
        tune(recipe, run=result.run, out=tmp_path / "other.toml")
    more = recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"trials": 10})})
    assert [one.number for one in tune(more, run=result.run).trials] == list(range(10))


def test_trials_that_lag_behind_are_pruned(pictures: Path, tmp_path: Path) -> None:
    space = {"train.lr": [GOOD, 0.9 * GOOD, 1.1 * GOOD, BAD]}
    result = tune(recipe_of(pictures, space, train={"epochs": 3}, trials=9), run=tmp_path / "run")
    pruned = [one for one in result.trials if one.state == "pruned"]
    assert BAD in {one.parameters["train.lr"] for one in pruned}
    assert all(0 < one.epochs < 3 and one.reason.startswith("not worth going on") for one in pruned)
    assert all(one.epochs == 3 for one in result.trials if one.state == "complete")
    assert result.best is not None
    assert result.best.parameters["train.lr"] != BAD


def test_the_median_pruner_waits_for_a_quarter_of_the_epochs_and_four_trials() -> None:
    study = optuna.create_study(direction="maximize", pruner=make_pruner("median", 8))
    for _ in range(4):
        trial = study.ask()
        for epoch in range(1, 9):
            trial.report(0.9, epoch)
        study.tell(trial, 0.9)
    trial = study.ask()
    trial.report(0.1, 1)
    assert not trial.should_prune()
    trial.report(0.1, 3)
    assert trial.should_prune()


def test_time_ends_a_trial_at_the_end_of_an_epoch(pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pictures, {"train.lr": [GOOD, BAD]}, train={"epochs": 5000, "patience": 5000}, time=5)
    with pytest.raises(TrainingError, match=r"no trial was completed \(1 begun; time was over after epoch \d+ of 5000"):
        tune(recipe, run=tmp_path / "run")
    [folder] = (tmp_path / "run" / "tune").iterdir()
    [one] = rows(StudyFolder(folder).study, search_space(recipe.tune))
    assert one.state == "pruned"
    assert 0 < one.epochs < 5000
    assert (folder / "tune.html").is_file()
    assert not (folder / "tuned.toml").exists()


def test_arguments_of_several_numbers_freezing_and_the_input_are_searched_together(
    pictures: Path, tmp_path: Path
) -> None:
    """Nothing of this contradicts itself in any trial; ``layer_decay`` is at its default, which a probe has none of."""
    values = {
        "data": {"path": str(pictures), "image_size": [16, 24]},
        "model": {"name": "test_tune:Deep"},
        "train": {name: value for name, value in TRAIN.items() if name != "layer_decay"} | {"time": "5m", "folds": 3},
        "tune": {
            "trials": 8,
            "pruner": "none",
            "space": {
                "train.head_epochs": {"low": 0.5, "high": 1.5},
                "train.unfreeze": ["all", "none"],
                "train.lr_decay": {"low": 0.1, "high": 0.5},
                "model.arguments.widths": [[8], [8, 16]],
                "data.normalize": ["model", "data"],
            },
        },
    }
    console = Listening()
    result = tune(validate(Recipe, values, where="test"), run=tmp_path / "run", console=console)
    assert [one.state for one in result.trials] == ["complete"] * 8, [one.reason for one in result.trials]
    assert result.trials[0].parameters["model.arguments.widths"] == (8,)
    drawn = [one.parameters for one in result.trials]
    assert {one["train.unfreeze"] for one in drawn} == {"all", "none"}
    assert all(("train.head_epochs" in one) == (one["train.unfreeze"] == "all") for one in drawn)
    assert sum("train.lr_decay is never drawn" in line for line in console.said) == 1
    assert sum("train.head_epochs is never drawn" in line for line in console.said) == 0
    assert any("3 folds are for the recipe that is found" in line for line in console.said)
    assert result.recipe is not None
    assert result.best is not None
    written = load_recipe(result.recipe)
    assert written.model.arguments == {"widths": result.best.parameters["model.arguments.widths"]}
    assert (written.data.normalize, written.train.folds) == (result.best.parameters["data.normalize"], 3)


def test_a_training_that_its_own_time_ends_is_complete(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []
    real = _Watch.__call__

    def listening(watch: _Watch, epoch: int, score: float, last: bool) -> None:
        told.append((epoch, last))
        real(watch, epoch, score, last)

    monkeypatch.setattr(_Watch, "__call__", listening)
    train = {"epochs": 5000, "patience": 5000, "time": "2s"}
    result = tune(recipe_of(pictures, {"train.lr": [GOOD, BAD]}, train=train, trials=1), run=tmp_path / "run")
    [one] = result.trials
    assert one.state == "complete"
    assert told == [(epoch, epoch == one.epochs) for epoch in range(1, one.epochs + 1)]
    assert one.epochs < 5000


def test_when_the_first_trials_all_fail_the_search_ends(pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pictures, {"model.arguments.width": [1000, 2000]}, trials=50)
    with pytest.raises(TrainingError, match=r"the first 3 trials all failed: .*too wide a network"):
        tune(recipe, run=tmp_path / "run")


# --- several processes, kills -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_share_one_study_and_do_exactly_as_many_trials(pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pictures, {"train.lr": {"low": 1e-3, "high": 1e-1, "log": True}}, trials=6, workers=2)
    result = tune(recipe, run=tmp_path / "run")
    assert [one.number for one in result.trials] == list(range(6))
    assert {one.state for one in result.trials} <= {"complete", "pruned"}
    assert sum(one.defaults for one in result.trials) == 1
    assert len({one.parameters["train.lr"] for one in result.trials}) == 6
    assert not list((result.folder / "workers").iterdir())


def by_hand(recipe: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """The command as typed in a shell of its own, which finds this module's model."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([*(path for path in sys.path if path), str(Path.cwd())])}
    command = [sys.executable, "-m", "edgeopt", "tune", str(recipe), "--run", str(run), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=here)


@pytest.mark.slow
def test_the_caches_of_all_workers_share_the_memory(pictures: Path, tmp_path: Path) -> None:
    recipe = recipe_of(pictures, {"train.lr": [0.1, 0.2]}, trials=2, workers=3)
    workspace = Workspace(Run(tmp_path, {}), Dataset("", (), ()), recipe.data, Silent())
    shelf = _search(recipe, search_space(recipe.tune), workspace, tmp_path, None).workspace.shelf
    assert shelf is not None
    assert shelf.caches == 2 * 3


@pytest.mark.slow
def test_the_same_command_in_two_shells_is_one_search(pictures: Path, tmp_path: Path) -> None:
    train = {"epochs": 40, "patience": 40}
    recipe = recipe_of(pictures, {"train.lr": [GOOD, 0.5 * GOOD]}, train=train, trials=2, pruner="none")
    file = write(recipe, tmp_path)
    other = by_hand(file, tmp_path / "run", "--json")
    wait_for_epochs(tmp_path / "run", 3)
    result = tune(load_recipe(file), run=tmp_path / "run")
    said, _ = other.communicate()
    assert other.returncode == 0
    assert json.loads(said)["folder"] == str(result.folder)
    first, second = study_of(result).get_trials()
    assert first.state == second.state == TrialState.COMPLETE
    assert first.user_attrs["worker"] != second.user_attrs["worker"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_search_that_was_stopped_goes_on_with_the_trial_it_was_at(
    number: signal.Signals, pictures: Path, tmp_path: Path
) -> None:
    space = {"train.lr": [GOOD, BAD]}
    recipe = recipe_of(pictures, space, train={"epochs": 40, "patience": 40}, trials=1, pruner="none")
    file = write(recipe, tmp_path)
    process = by_hand(file, tmp_path / "run")
    wait_for_epochs(tmp_path / "run", 3)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    [folder] = (tmp_path / "run" / "tune").iterdir()
    [left] = StudyFolder(folder).study.get_trials()
    assert left.state == TrialState.RUNNING
    result = tune(load_recipe(file), run=tmp_path / "run")
    [one] = study_of(result).get_trials()
    assert one.state == TrialState.COMPLETE
    assert one.params == left.params
    assert left.intermediate_values.items() <= one.intermediate_values.items()
    assert one.user_attrs["attempts"] == (1 if number == signal.SIGKILL else 0)


def wait_for_epochs(run: Path, count: int) -> None:
    """Until the first trial has reported so many epochs."""
    for _ in range(1200):
        journals = list(run.glob("tune/*/journal.log"))
        if journals and journals[0].read_text().count('"intermediate_value"') >= count:
            return
        time.sleep(0.1)
    raise AssertionError("no epoch was reported")


def write(recipe: Recipe, folder: Path) -> Path:
    """The recipe with its search space as a file."""
    lines = [recipe_text(recipe, []), "[tune.space]"]
    for key, one in recipe.tune.space.items():
        value = json.dumps(one) if isinstance(one, list) else "{ low = 1e-3, high = 1e-1, log = true }"
        lines.append(f'"{key}" = {value}')
    text = "\n".join(lines)
    for name in ("trials", "pruner"):
        if name in recipe.tune.model_fields_set:
            value = getattr(recipe.tune, name)
            text = text.replace("[tune] ", f"[tune]\n{name} = {json.dumps(value)} ", 1)
    file = folder / "search.toml"
    file.write_text(text)
    return file


def test_a_trial_that_takes_its_process_down_again_and_again_is_given_up(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    study.first({"x": 1})
    for attempt in range(3):
        with study.working():
            trial = study.claim(1)
        assert trial is not None
        assert trial.number == 0
        assert int(trial.user_attrs.get("attempts", 0)) == attempt
    with study.working():
        assert study.claim(1) is None
    [one] = study.study.get_trials()
    assert one.state == TrialState.FAIL
    assert one.user_attrs["reason"].startswith("its process was killed 3 times")


def test_a_trial_at_work_is_left_alone_and_one_that_was_released_is_taken_up(tmp_path: Path) -> None:
    one, two = StudyFolder(tmp_path), StudyFolder(tmp_path)
    with one.working(), two.working():
        first, second = one.claim(2), two.claim(2)
        assert first is not None
        assert second is not None
        assert (first.number, second.number) == (0, 1)
        assert one.claim(2) is None
        one.release(first)
        taken = two.claim(2)
        assert taken is not None
        assert taken.number == 0
        assert int(taken.user_attrs["attempts"]) == 0


def test_workers_draw_by_the_number_of_the_trial(tmp_path: Path) -> None:
    def drawn(folder: Path, workers: int) -> list[float]:
        found = {}
        crew = [StudyFolder(folder, seed=7) for _ in range(workers)]
        for turn in range(4):
            worker = crew[turn % workers]
            with worker.working():
                trial = worker.claim(None)
                assert trial is not None
                found[trial.number] = trial.suggest_float("x", 0.0, 1.0)
                worker.finish(trial, TrialState.COMPLETE, score=0.5)
        return [found[number] for number in sorted(found)]

    alone = drawn(tmp_path / "alone", 1)
    assert len(set(alone)) == 4
    assert drawn(tmp_path / "two", 2) == alone


def test_a_journal_cut_off_by_a_full_disk_is_read_and_one_that_is_none_is_refused(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    with study.working():
        assert study.claim(None) is not None
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker_i')
    assert len(StudyFolder(tmp_path).study.get_trials()) == 1
    assert journal.read_bytes().startswith(whole)
    journal.write_bytes(b'{"surprise": 1}\n')
    with pytest.raises(RunError, match="is damaged"):
        StudyFolder(tmp_path)


def test_values_that_are_not_of_the_space_are_never_the_best(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path).study
    for name, value in (("resnet18", 0.5), ("evil:code", 0.9)):
        kinds = {"model.name": CategoricalDistribution((name,))}
        steps = {1: value}
        study.add_trial(
            create_trial(params={"model.name": name}, distributions=kinds, value=value, intermediate_values=steps)
        )
    trials = rows(study, {"model.name": Choice(("resnet18", "vgg16"))})
    assert [one.state for one in trials] == ["complete", "failed"]
    best = best_of(trials)
    assert best is not None
    assert best.number == 0


def test_what_a_search_holds_half_written_is_not_swept_away(searched: tuple[Recipe, TuneResult]) -> None:
    _, result = searched
    half = result.folder / ".last.0123456789ab.tmp.safetensors"
    half.write_bytes(b"x")
    with Run.open(result.run).lock():
        assert half.exists()
    half.unlink()


# --- what is shown and written ------------------------------------------------------------------------------------


def test_importance_is_where_the_score_comes_from(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path).study
    rng = np.random.default_rng(0)
    kinds = {"train.lr": FloatDistribution(0.0, 1.0), "train.augment": CategoricalDistribution(("light", "heavy"))}
    for _ in range(24):
        lr, augment = float(rng.random()), ("light", "heavy")[int(rng.integers(2))]
        params = {"train.lr": lr, "train.augment": augment}
        study.add_trial(
            create_trial(params=params, distributions=kinds, value=lr, intermediate_values={1: lr}, user_attrs={})
        )
    space = {"train.lr": Range(0.0, 1.0), "train.augment": Choice(("light", "heavy"))}
    shares, method = importances(study, rows(study, space))
    assert list(shares) == ["train.lr", "train.augment"]
    assert shares["train.lr"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert method == "fANOVA"
    few = rows(study, space)[:7]
    assert importances(study, few) == ({}, "")


def test_the_page_shows_every_trial_and_asks_nothing_of_the_network(searched: tuple[Recipe, TuneResult]) -> None:
    _, result = searched
    page = result.html.read_text()
    assert page.count("<tr") >= len(result.trials) + len(result.best.parameters if result.best else ())
    judged = sum(one.score is not None for one in result.trials)
    assert page.count("<circle") >= judged
    assert "polyline" in page
    assert "http://" not in page
    assert "https://" not in page


def test_a_recipe_is_written_as_it_reads(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "name": 'a "quoted" name', "targets": ["openvino", str(tmp_path / "board.toml")],
        "data": {"path": str(tmp_path / "ph\\otos é"), "image_size": [160, 224], "normalize": "data", "val": 0.15,
                 "exclude": str(tmp_path / "out.txt")},
        "model": {"name": "convnext_tiny", "arguments": {"depths": [2, 2, 4, 2], "drop_rate": 1e-05, "flag": True}},
        "train": {"epochs": 7, "lr": 3e-05, "batch_size": "auto", "loss": "focal", "loss_arguments": {"gamma": 1.5},
                  "weight_decay": 0.0, "ema_decay": 1e-20, "folds": 3, "head_epochs": 1.5, "time": "20m"},
        "augment": {"rotation": 15.0, "mixup": 0.0},
        "compress": {"int8": False, "prune": 0.25, "schemes": ["u8a8w"]},
        "bench": {"seconds": 3.0}, "budget": {"min_top1": 0.9}, "ensemble": {"vote": "hard"},
    }  # fmt: skip
    recipe = validate(Recipe, values, where="test")
    file = tmp_path / "written.toml"
    text = recipe_text(recipe, ["first line"], name=file.name)
    file.write_text(text)
    assert load_recipe(file) == recipe
    assert text.startswith("# first line\n")
    folds: dict[str, Any] = {"data": {"path": "/x"}, "train": {"folds": 3}, "ensemble": {}}
    for stated in ({"data": {"path": "/x"}}, folds):
        plain = validate(Recipe, stated, where="test")
        file.write_text(recipe_text(plain, []))
        assert load_recipe(file) == plain
        assert ("\n# [ensemble] " in file.read_text()) == ("ensemble" not in stated)


def test_the_command_line_takes_models_and_sizes_and_prints_one_object(pictures: Path, tmp_path: Path) -> None:
    call = [
        "tune", str(pictures), "--models", "test_tune:Tiny,test_tune:Other", "--image-sizes", "16,16x24", "--quiet",
        "--trials", "3", "--epochs", "1", "--no-pretrained", "--run", str(tmp_path / "run"), "--json",
        "--out", str(tmp_path / "best.toml"), *(f"--set=train.{key}={value}" for key, value in TRAIN.items()),
    ]  # fmt: skip
    done = CliRunner().invoke(group, call)
    assert done.exit_code == 0, done.output
    stated = json.loads(done.stdout)
    assert stated["schema"] == 1
    assert [set(one["parameters"]) for one in stated["trials"]] == [{"model.name", "data.image_size"}] * 3
    assert stated["trials"][0]["parameters"] == {"model.name": "test_tune:Tiny", "data.image_size": 16}
    assert stated["recipe"] == str(tmp_path / "best.toml")
    assert json.loads(Path(stated["folder"], "tune.json").read_text()) == stated
    assert load_recipe(tmp_path / "best.toml").model.name == stated["best"]["parameters"]["model.name"]


def test_a_recipe_or_a_file_of_ones_own_states_the_space(pictures: Path, tmp_path: Path) -> None:
    file = write(recipe_of(pictures, {"train.lr": [GOOD, BAD]}, trials=7), tmp_path)
    own = tmp_path / "space.toml"
    own.write_text('train.weight_decay = { low = 0.01, high = 0.1 }\n"augment.mixup" = [0.0, 0.2]\n')
    theirs = search_recipe({"data.path": file})
    assert theirs.tune.space == {"train.lr": [GOOD, BAD]}
    assert (theirs.tune.trials, theirs.tune.time, theirs.train.epochs) == (7, None, 2)
    mine = search_recipe({"data.path": file, "tune.trials": 9, "tune.time": "5m"}, space=own, models="resnet18,vgg16")
    assert set(search_space(mine.tune)) == {"augment.mixup", "train.weight_decay", "model.name"}
    assert (mine.tune.trials, mine.tune.time, mine.train.epochs) == (9, 300.0, 2)
    assert mine.model.name == "resnet18"
    own.write_text("train.lrr = [1]\n")
    with pytest.raises(ConfigError, match=r"tune\.space\.train\.lrr"):
        search_recipe({"data.path": "photos"}, space=own)
