"""``edgeopt run``: what a recipe's goals come to, and what is said before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeopt import Budget, Run, cli, pipeline
from edgeopt.config import load_recipe
from edgeopt.files import write_json
from edgeopt.pipeline import STEPS, Outcome, run_recipe
from tests.small_run import write_small_run

RECIPE = """\
targets = ["onnxruntime"]
[data]
path = "{pictures}"
image_size = 32
[model]
name = "test_resnet"
pretrained = false
[train]
epochs = 1
batch_size = 8
[compress]
max_drop = 100.0
trials = 1
epochs = 0
calibration = "fast"
[bench]
seconds = 1
"""


def ended(*typed: str) -> int:
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(typed))
    return int(str(caught.value.code or 0))


def test_a_missed_goal_of_compression_is_exit_code_3_after_everything_else_was_done(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "edgeopt.toml", tmp_path / "run"
    path.write_text(RECIPE.format(pictures=pictures))
    run, _, missed = run_recipe(load_recipe(path), run=folder, steps=STEPS[:3])
    assert missed == ()
    (stage,) = folder.glob("host/int8-*/stage.json")
    record = json.loads(stage.read_text())
    record["ladder"]["verdict"] = "missed"  # which a tiny model cannot be made to do for certain
    write_json(stage, record)
    assert ended("run", str(path), "--run", str(folder), "--json") == 3
    told = capsys.readouterr()
    assert f"edgeopt: missed: {stage.parent.name} misses a drop of at most 100 points" in told.err
    assert json.loads(told.out)["engines"], "built, measured and reported all the same"


@pytest.mark.parametrize(
    ("missed", "budget", "code"),
    [
        ((), {}, 0),
        ((), {"max_drop_points": 0.5}, 5),
        (("int8 misses a latency of 4ms",), {}, 3),
        (("int8 misses a latency of 4ms",), {"max_drop_points": 0.5}, 3),
        ((), {"min_top1": 0.99}, 3),
    ],
)
def test_missed_is_more_than_undecided_and_that_is_more_than_nothing(
    missed: tuple[str, ...],
    budget: dict[str, float],
    code: int,
    small: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the run: what it came to is planted."""
    path = tmp_path / "edgeopt.toml"
    path.write_text('[data]\npath = "photos"\n')
    monkeypatch.setattr(pipeline, "run_recipe", lambda *_, **__: Outcome(small, Budget(**budget), missed))
    assert ended("run", str(path), "--quiet") == code


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_small_run(tmp_path_factory.mktemp("runs") / "small")
