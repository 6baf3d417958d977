"""``edgeopt run``: what a recipe's goals come to, and what is said before anything is trained."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from edgeopt import Budget, ModelConfig, Run, api, cli, pipeline
from edgeopt.config import Recipe, load_recipe, over_recipe, validate
from edgeopt.errors import ConfigError, ModelError
from edgeopt.files import write_json
from edgeopt.pipeline import STEPS, Outcome, run_recipe
from edgeopt.recipe_text import RECIPE as INIT
from edgeopt.stages.report import kept_budget
from tests.listening import Listening
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
starts = 1
"""


def ended(*typed: str) -> int:
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(typed))
    return int(str(caught.value.code or 0))


@pytest.mark.slow
def test_a_missed_goal_of_compression_is_exit_code_3_after_everything_else_was_done(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "edgeopt.toml", tmp_path / "run"
    path.write_text(RECIPE.format(pictures=pictures))
    *_, missed = run_recipe(load_recipe(path), run=folder, steps=STEPS[:4])
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


@pytest.mark.parametrize(
    ("target", "compress", "said"),
    [
        ("raspberry-pi-5", {"latency": "4ms"}, "raspberry-pi-5 is another device"),
        ("float.toml", {"latency": "4ms"}, "a latency is that of int8 engines"),
        ("float.toml", {"latency_candidates": True}, "a latency is that of int8 engines"),
        ("openvino", {"latency": "4ms", "schemes": ["s8a8w"]}, "a latency is that of one int8 scheme"),
        ("openvino", {"calibration": "fats"}, 'did you mean "fast"'),
    ],
)
def test_a_goal_that_cannot_be_measured_is_said_before_a_picture_is_read(
    target: str, compress: dict[str, object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "float.toml").write_text('schema = 1\ntitle = "in float"\nbackend = "openvino"\nprecision = "fp32"\n')
    target = str(tmp_path / target) if target.endswith(".toml") else target
    values = {"targets": [target], "data": {"path": str(tmp_path / "no pictures")}, "compress": compress}
    with pytest.raises(ConfigError, match=said):
        run_recipe(validate(Recipe, values, where="recipe"), run=tmp_path / "run")


@pytest.mark.parametrize("goal", [{"latency": "4ms"}, {"latency_candidates": True}])
def test_a_latency_beside_the_two_default_targets_is_a_problem_of_the_recipe(goal: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"it is measured on one target, and targets names 2; name one"):
        validate(Recipe, {"data": {"path": "x"}, "compress": goal}, where="recipe")
    assert re.search(r"targets = .*one alone\n#\s+# where \[compress\] has a latency", INIT)


def test_finetune_of_a_recipe_trains_what_run_goes_on_from(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edgeopt.toml").write_text(
        'name = "mine"\n' + RECIPE.format(pictures=pictures) + "[budget]\nmin_top1 = 0.25\n"
    )
    assert ended("finetune", "edgeopt.toml", "--json") == 0
    trained = json.loads(capsys.readouterr().out)
    stage = json.loads((tmp_path / "runs/mine/host/float/stage.json").read_text())
    assert stage["config"]["model"]["name"] == "test_resnet"
    assert (stage["config"]["train"]["epochs"], trained["skipped"]) == (1, False)
    run, budget, _ = run_recipe(load_recipe(tmp_path / "edgeopt.toml"), steps=STEPS[:2])
    assert run.path.resolve() == tmp_path / "runs/mine"
    assert json.loads((tmp_path / "runs/mine/host/float/stage.json").read_text()) == stage, "trained once"
    assert kept_budget(run) == budget == Budget(min_top1=0.25)
    assert ended("finetune", "edgeopt.toml", "--epochs", "2", "--run", "runs/longer", "--quiet") == 0
    longer = json.loads((tmp_path / "runs/longer/host/float/stage.json").read_text())
    assert longer["config"]["train"]["epochs"] == 2
    assert longer["config"]["train"]["batch_size"] == 8, "what no option says is the recipe's"
    of = longer["config_origin"]["train"]
    assert (of["epochs"], of["batch_size"], of["optimizer"]) == ("command line", "recipe edgeopt.toml", "default")
    assert stage["config_origin"]["model"]["name"] == "recipe edgeopt.toml"


CHECKING = """\
[data]
path = "photos"
image_size = 32
[check]
labels = false
leave_out = true
[model]
name = "test_resnet"
pretrained = false
[train]
epochs = 1
"""


@pytest.fixture
def copied(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the working one, with ``photos``, one of which is there twice, and a recipe that checks them."""
    shutil.copytree(pictures, tmp_path / "photos")
    first = min((tmp_path / "photos").rglob("*.png"))
    shutil.copy(first, first.with_name("zz-copy.png"))
    (tmp_path / "edgeopt.toml").write_text(CHECKING)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_checks_the_pictures_and_trains_without_those_it_would_leave_out(copied: Path) -> None:
    console = Listening()
    run = run_recipe(load_recipe(copied / "edgeopt.toml"), steps=STEPS[:2], console=console).run
    said = "\n".join(console.said)
    assert "checked 121 pictures: 1 exact copies, " in said
    assert "; page: runs/checks/photos/check.html" in said
    listed = json.loads((copied / "runs/checks/photos/issues.json").read_text())["leave_out"]
    assert f"{len(listed)} pictures are left out: runs/checks/photos/leave-out.txt" in said
    of_run = {path for path, *_ in json.loads((run.path / "data/split.json").read_text())["items"]}
    every = {str(path.relative_to(copied / "photos")) for path in (copied / "photos").rglob("*.png")}
    assert of_run == every - set(listed)
    assert [path for path in listed if path.endswith("zz-copy.png")]
    page = copied / "runs/checks/photos/check.html"
    before = page.stat().st_mtime_ns
    again = run_recipe(load_recipe(copied / "edgeopt.toml"), steps=STEPS[:2]).run
    assert (again.path, page.stat().st_mtime_ns) == (run.path, before), "looked at once, trained once"
    other = min((copied / "photos").rglob("*.png"))
    shutil.copy(other, other.with_name("zz-more.png"))
    console = Listening()
    more = run_recipe(load_recipe(copied / "edgeopt.toml"), steps=STEPS[:2], console=console).run
    assert "2 exact copies" in console.said[0], "pictures that are new are looked at"
    assert more.path == run.path, "the same are trained on"


def test_check_of_a_recipe_takes_its_tables_and_options_over_them(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("check", "edgeopt.toml", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["pictures"], record["counts"]["duplicate"], record["label_quality"]) == (121, 1, [])
    assert ended("check", "edgeopt.toml", "--labels", "--model", "resnet81") == 1
    assert 'did you mean "resnet18"' in capsys.readouterr().err


def test_what_is_left_out_is_said_once_and_by_run_alone(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("finetune", "edgeopt.toml") == 1
    said = capsys.readouterr().err
    assert "check.leave_out of the recipe is for edgeopt run" in said
    assert "fix: edgeopt check edgeopt.toml --exclude leave-out.txt" in said
    assert ended("tune", "edgeopt.toml") == 1
    assert "check.leave_out of the recipe is for edgeopt run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"check\.leave_out: data\.exclude names the pictures to leave out already"):
        validate(
            Recipe, {"data": {"path": "x", "exclude": "list.txt"}, "check": {"leave_out": True}}, where="edgeopt.toml"
        )


def test_the_list_to_leave_out_is_put_where_the_recipe_looks_for_it(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "of it").mkdir()
    (copied / "of it/edgeopt.toml").write_text(CHECKING.replace('"photos"', '"../photos"'))
    assert ended("finetune", "of it/edgeopt.toml") == 1
    said = capsys.readouterr().err
    assert "fix: edgeopt check 'of it/edgeopt.toml' --exclude 'of it/leave-out.txt'; then in the recipe" in said
    (copied / "of it/leave-out.txt").write_text("")
    (copied / "of it/edgeopt.toml").write_text(
        CHECKING.replace('"photos"', '"../photos"\nexclude = "leave-out.txt"').replace("leave_out = true", "")
    )
    assert Path(str(load_recipe(copied / "of it/edgeopt.toml").data.exclude)).is_file()


def test_one_argument_of_the_model_leaves_the_recipes_others(tmp_path: Path) -> None:
    recipe = tmp_path / "edgeopt.toml"
    recipe.write_text('[data]\npath = "x"\n[model]\nname = "vit"\narguments = {depth = 2, embed_dim = 48}\n')
    typed = {"data": {"path": str(recipe)}, "model": {"arguments": {"depth": 1}}}
    assert over_recipe(typed)["model"]["arguments"] == {"depth": 1, "embed_dim": 48}
    other = {**typed, "model": {"name": "resnet18", "arguments": {"depth": 1}}}
    assert over_recipe(other)["model"]["arguments"] == {"depth": 1}
    assert typed["model"]["arguments"] == {"depth": 1}, "what was typed stays"


def test_a_folder_of_pictures_may_end_as_a_recipe_does(tmp_path: Path) -> None:
    (tmp_path / "photos.toml").mkdir()
    typed = {"data": {"path": str(tmp_path / "photos.toml")}}
    assert over_recipe(typed) == typed


WRONG = {
    "data": {"path": "nowhere"},
    "model": {"name": "resnet81"},
    "train": {"optimizer": "adamv", "lr_decay": 0.5, "keep": "soup"},
}
SAID = (
    'did you mean "resnet18"',
    'unknown optimizer "adamv" (did you mean "adam',
    "train.lr_decay: the schedule",
    "train.keep: says which of the folds' models",
)


def test_all_that_is_wrong_with_a_training_is_said_at_once_whatever_kind_it_is(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(WRONG)
    for start in (lambda: api.finetune(recipe.data, recipe.model, recipe.train, run=tmp_path / "run"),
                  lambda: api.tune(recipe, run=tmp_path / "run")):  # fmt: skip
        with pytest.raises(ConfigError, match="training: 4 problems") as caught:
            start()
        assert all(part in str(caught.value) for part in SAID)
    goal = recipe.compress.model_copy(update={"calibration": "fats"})
    with pytest.raises(ConfigError, match="the recipe: 5 problems") as caught:
        run_recipe(recipe.model_copy(update={"compress": goal}), run=tmp_path / "run")
    assert all(part in str(caught.value) for part in (*SAID, 'did you mean "fast"'))
    assert not list(tmp_path.iterdir())


def test_names_that_do_not_exist_are_said_with_what_is_wrong_in_the_tables() -> None:
    """An unknown loss keeps nothing else from being looked at."""
    with pytest.raises(ConfigError, match="options: 5 problems") as caught:
        validate(Recipe, {**WRONG, "train": {**WRONG["train"], "loss": "vocal"}}, where="finetune options")
    assert all(part in str(caught.value) for part in (*SAID, 'did you mean "focal"'))


def test_one_problem_is_said_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown timm model") as caught:
        api.finetune("nowhere", ModelConfig(name="resnet81"), run=tmp_path / "run")
    assert caught.value.fix == "edgeopt models lists some of them"
