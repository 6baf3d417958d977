"""Recipes, targets and calibration recipes: every problem at once, with suggestions; the shipped files are valid."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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


def test_the_recipe_of_init_is_valid_as_it_is(tmp_path: Path) -> None:
    recipe = load_recipe(_recipe(tmp_path, _INIT))
    assert recipe.budget.max_drop_points == 1.0
    assert recipe.ensemble is None


_INIT = RECIPE.format(name="edgeopt.toml")
#: What a commented key needs beside it to mean anything.
_COMPANIONS: dict[str, dict[str, Any]] = {
    "train.momentum": {"train": {"optimizer": "sgd"}},
    "train.lr_decay": {"train": {"schedule": "step"}},
    "train.lr_step_epochs": {"train": {"schedule": "step"}},
    "train.lr_patience": {"train": {"schedule": "plateau"}},
    "train.keep": {"train": {"folds": 5}},
    "train.temperature": {"train": {"teacher": "runs/big"}},
    "train.distill_weight": {"train": {"teacher": "runs/big"}},
    "augment.operations": {"augment": {"policy": "rand"}},
    "augment.magnitude": {"augment": {"policy": "rand"}},
    "ensemble.vote": {"train": {"folds": 5}},
    "ensemble.members": {"train": {"folds": 5}},
    "compress.latency": {"targets": ["openvino"]},
    "compress.time": {"compress": {"max_drop": 1.0}},
    "compress.trials": {"compress": {"max_drop": 1.0}},
    "bench.max_latency_ms": {"bench": {"throughput": True}},
}


def _stated(text: str) -> dict[str, Any]:
    """By ``table.key`` what each line of a recipe states, commented or not; of dotted keys the table they are in."""
    found: dict[str, Any] = {}
    table = ""
    for line in text.splitlines():
        bare = line.removeprefix("# ")
        if named := re.fullmatch(r"\[(\w+)\].*", bare):
            table = f"{named[1]}."
        elif re.match(r"[\w.]+ = ", bare):
            ((key, value),) = tomllib.loads(bare).items()
            assert f"{table}{key}" not in found or isinstance(value, dict), f"{table}{key} is there twice"
            found[f"{table}{key}"] = value
    return found


def _keys(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every key of a recipe, as ``table.key``."""
    found: dict[str, FieldInfo] = {}
    for name, one in model.model_fields.items():
        kinds = [kind for kind in (one.annotation, *get_args(one.annotation)) if isinstance(kind, type)]
        tables = [kind for kind in kinds if issubclass(kind, BaseModel)]
        found |= _keys(tables[0], f"{prefix}{name}.") if tables else {f"{prefix}{name}": one}
    return found


def test_init_shows_every_key_there_is() -> None:
    assert set(_stated(_INIT)) == set(_keys(Recipe))


@pytest.mark.parametrize("key", _keys(Recipe))
def test_a_key_that_init_shows_is_valid_and_has_its_default_where_it_has_one(key: str) -> None:
    table, _, name = key.rpartition(".")
    value, default = _stated(_INIT)[key], _keys(Recipe)[key].get_default(call_default_factory=True)
    recipe: dict[str, Any] = {"data": {"path": "x"}, **_COMPANIONS.get(key, {})}
    stated = {table: {**recipe.get(table, {}), name: value}} if table else {name: value}
    made = validate(Recipe, {**recipe, **stated}, where="init")
    if default in (None, PydanticUndefined) or isinstance(default, dict):
        return  # there is no literal for it: the comment says what holds
    read = getattr(getattr(made, table) if table else made, name)
    assert read == default
    assert type(read) is type(default)


def test_init_explains_every_key_and_the_default_of_one_without_a_literal() -> None:
    lines = [line for line in _INIT.splitlines() if re.match(r"(# )?\w+ = ", line)]
    silent = {re.sub(r"^# ", "", line).partition(" = ")[0] for line in lines if " # " not in line}
    assert silent == {"vertical_flip", "brightness", "contrast", "saturation", "max_p99_ms"}  # their names say it
    tables = {"augment", "budget"}  # whose first lines say it for all of theirs
    for key, one in _keys(Recipe).items():
        table, _, name = key.rpartition(".")
        if one.get_default() is None and table not in tables and name not in ("temperature", "distill_weight"):
            section = _INIT.partition(f"\n[{table}]")[2] or _INIT.partition(f"\n# [{table}]")[2] if table else _INIT
            line = next(line for line in section.splitlines() if re.match(rf"(# )?{name} = ", line))
            assert "default: " in line, line


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
