"""Recipes, targets and calibration recipes: every problem at once, with suggestions; the shipped files are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt import resources
from edgeopt.cli.init_cmd import RECIPE
from edgeopt.config import (
    Budget,
    Recipe,
    TrainConfig,
    load_calibration,
    load_recipe,
    load_target,
    origins,
    read_toml,
    stated_by,
    validate,
)
from edgeopt.errors import ConfigError


def _recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edgeopt.toml"
    path.write_text(text)
    return path


def test_every_problem_of_a_recipe_is_said_at_once_with_suggestions(tmp_path: Path) -> None:
    path = _recipe(
        tmp_path, '[data]\npath = "x"\nimage_sise = 3\n[train]\nepochs = 0\nlr = "fast"\n[compress]\nprune = 1.5\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    text = str(caught.value)
    assert "4 problems" in text
    for part in ("data.image_sise", 'did you mean "image_size"', "train.epochs", "train.lr", "compress.prune"):
        assert part in text


def test_toml_that_is_none_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2"):
        read_toml(_recipe(tmp_path, "a = 1\nb = = 2\n"))


def test_relative_paths_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    text = 'targets = ["onnxruntime", "./board.toml"]\n[data]\npath = "x"\n[model]\nweights = "w.pth"\n'
    recipe = load_recipe(_recipe(tmp_path, text))
    assert recipe.targets == ("onnxruntime", str(tmp_path / "board.toml"))
    assert recipe.model.weights == str(tmp_path / "w.pth")
    assert load_recipe(_recipe(tmp_path, '[data]\npath = "photos"\n')).data.path == str(tmp_path / "photos")
    elsewhere = _recipe(tmp_path, '[data]\npath = "torchvision:CIFAR10"\n')
    assert load_recipe(elsewhere).data.path == "torchvision:CIFAR10"


def test_the_commented_recipe_is_valid_and_its_comments_are_the_keys_it_may_have(tmp_path: Path) -> None:
    recipe = load_recipe(_recipe(tmp_path, RECIPE.format(name="edgeopt.toml")))
    assert recipe.budget.max_drop_points == 1.0
    active = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and (" = " in line or line.startswith("# [")) else line
        for line in RECIPE.format(name="edgeopt.toml").splitlines()
    )
    assert load_recipe(_recipe(tmp_path, active)).compress.prune == 0.3
    assert load_recipe(_recipe(tmp_path, active)).ensemble is not None


def test_schemes_are_checked_where_they_are_written() -> None:
    with pytest.raises(ConfigError, match='did you mean "u8a8w"'):
        validate(Recipe, {"data": {"path": "x"}, "compress": {"schemes": ["u8a8"]}}, where="recipe")


@pytest.mark.parametrize("name", resources.names("targets"))
def test_every_shipped_target_is_valid_and_says_where_its_claims_come_from(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.sources or target.match.model_dump(exclude_none=True) == {}


@pytest.mark.parametrize("name", resources.names("calibration"))
def test_every_shipped_calibration_recipe_is_valid(name: str) -> None:
    assert load_calibration(name).name == name


def test_the_named_targets_and_recipes_are_shipped() -> None:
    plain = {"onnxruntime", "openvino", "tensorrt"}
    devices = {"raspberry-pi-5", "intel-n100", "jetson-orin-nano", "rtx-desktop"}
    assert plain | devices <= set(resources.names("targets"))
    assert [load_calibration(name).count for name in ("fast", "default", "thorough")] == [64, 300, 1000]


def test_a_target_of_ones_own_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "my-board.toml"
    path.write_text('schema = 1\ntitle = "mine"\nbackend = "onnxruntime"\n')
    assert load_target(str(path)).name == "my-board"
    with pytest.raises(ConfigError, match='did you mean "onnxruntime"'):
        load_target("onnxruntim")


def test_a_target_file_cannot_choose_the_folder_its_engines_go_to(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text('schema = 1\nname = "../../escaped"\ntitle = "mine"\nbackend = "onnxruntime"\n')
    assert load_target(str(path)).name == "board"


def test_a_folder_in_place_of_a_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(tmp_path)


def test_budget_lines_of_the_other_win() -> None:
    merged = Budget(max_drop_points=1.0, min_top1=0.9).merged(Budget(max_drop_points=0.5))
    assert (merged.max_drop_points, merged.min_top1) == (0.5, 0.9)


def test_the_origin_of_each_value_is_noted() -> None:
    config = TrainConfig(epochs=3)
    assert origins(config, {"epochs": 3, "lr": 1e-3}) == {"epochs": "call", "lr": "default"}
    with stated_by("recipe edgeopt.toml"):
        assert origins(config, {"epochs": 3})["epochs"] == "recipe edgeopt.toml"
    assert origins(config, {"epochs": 3})["epochs"] == "call"


def test_a_speedup_may_name_its_baseline_and_budgets_merge_line_by_line() -> None:
    plain, named = Budget.model_validate({"min_speedup": 2}), Budget.model_validate({"min_speedup": {"float": 1.2}})
    assert plain.lines() == {"min_speedup": 2.0}
    assert plain.merged(named).lines() == {"min_speedup": 2.0, "min_speedup.float": 1.2}
    assert named.merged(plain.model_copy(update={"allow_undecided": True})).allow_undecided
    with pytest.raises(ConfigError, match=r"min_speedup\.flaot.*'original', 'compiled' or 'float', got 'flaot'"):
        validate(Budget, {"min_speedup": {"flaot": 1.2}}, where="budget")
    with pytest.raises(ConfigError, match=r'max_class_drop: unknown key \(did you mean "max_class_drop_points"\?\)'):
        validate(Budget, {"max_class_drop": 1.2}, where="budget")
