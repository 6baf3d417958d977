"""Recipes, targets, calibration recipes and budgets: read from TOML, every problem said at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from edgeopt import resources
from edgeopt.compress_table import OUT_OF_SCOPE
from edgeopt.compress_table import CompressConfig as CompressConfig
from edgeopt.data_table import DataConfig as DataConfig
from edgeopt.errors import ConfigError, did_you_mean
from edgeopt.files import fits_a_command, printable
from edgeopt.recipe_problems import recipe_contradictions, unknown_names
from edgeopt.recipe_tables import BaselineConfig as BaselineConfig
from edgeopt.recipe_tables import BenchConfig as BenchConfig
from edgeopt.recipe_tables import BuildConfig as BuildConfig
from edgeopt.recipe_tables import CheckConfig as CheckConfig
from edgeopt.recipe_tables import EnsembleConfig as EnsembleConfig
from edgeopt.recipe_tables import ModelConfig as ModelConfig
from edgeopt.recipe_tables import Recipe as Recipe
from edgeopt.tables import Strict as Strict
from edgeopt.tables import Taught
from edgeopt.target_tables import Baseline as Baseline
from edgeopt.target_tables import Budget as Budget
from edgeopt.target_tables import CalibrationRecipe as CalibrationRecipe
from edgeopt.target_tables import Match as Match
from edgeopt.target_tables import SessionOptions as SessionOptions
from edgeopt.target_tables import Target as Target
from edgeopt.training_tables import AugmentConfig as AugmentConfig
from edgeopt.training_tables import TrainConfig as TrainConfig
from edgeopt.tune_space import Space, read_space
from edgeopt.tune_table import TuneConfig as TuneConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Model = TypeVar("Model", bound=BaseModel)

_MAX_TOML_BYTES = 2**20
_MOST_PROBLEMS = 20  # said at once

#: Who states the values of the configs made now: "call", "command line", or the recipe's file.
_stated_by: ContextVar[str] = ContextVar("stated_by", default="call")
_over: ContextVar[tuple[str, Mapping[type[BaseModel], frozenset[str]]] | None] = ContextVar("over", default=None)


@contextmanager
def stated_by(origin: str) -> Iterator[None]:
    """Values of configs recorded inside are noted as coming from ``origin``."""
    token = _stated_by.set(origin)
    try:
        yield
    finally:
        _stated_by.reset(token)


@contextmanager
def stated_over_recipe(values: Mapping[str, Any]) -> Iterator[None]:
    """As :func:`stated_by` for what :func:`over_recipe` makes of ``values``: the rest comes from the recipe, if any."""
    path = Path(str(values["data"]["path"]))
    if not _is_recipe(path):
        yield
        return
    tables: dict[str, type[BaseModel]] = {
        "data": DataConfig,
        "model": ModelConfig,
        "train": TrainConfig,
        "augment": AugmentConfig,
    }
    typed = {kind: frozenset(values.get(name, {})) - {"path"} for name, kind in tables.items()}
    token = _over.set((f"recipe {path.name}", typed))
    try:
        yield
    finally:
        _over.reset(token)


def origins(config: BaseModel, names: Mapping[str, Any]) -> dict[str, str]:
    """For each of ``names``, a field of ``config``: who stated it, or "default" when nobody did."""
    recipe, typed = _over.get() or (_stated_by.get(), {})

    def of(name: str) -> str:
        if name not in config.model_fields_set:
            return "default"
        return _stated_by.get() if name in typed.get(type(config), ()) else recipe

    return {name: of(name) for name in names}


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; raises ConfigError with the line when it is not TOML."""
    try:
        with path.open("rb") as handle:
            content = handle.read(_MAX_TOML_BYTES + 1)
        if len(content) > _MAX_TOML_BYTES:
            raise ConfigError(f"{path} is larger than any recipe or target", fix="give a .toml file")
        values: dict[str, Any] = tomllib.loads(content.decode())
        return values
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", fix="check the path, or make one with: edgeopt init") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", fix="give a .toml file") from None
    except (ValueError, RecursionError) as error:  # of tomllib, of the text's encoding, of numbers too long or nested
        raise ConfigError(f"{path} is not valid TOML: {printable(str(error))[:300]}", fix="correct that line") from None


def validate(model: type[Model], values: Mapping[str, Any], *, where: str) -> Model:
    """``values`` as ``model``; raises one ConfigError that lists every problem, with suggestions for misspelt keys.

    Of a recipe what contradicts itself is among the problems, as far as its tables are readable, and beside others so
    are models and optimizers that do not exist.
    """
    problems, made = [], None
    try:
        made = model.model_validate(values)
    except ValidationError as error:
        problems = [_problem(model, item) for item in error.errors()]
    if issubclass(model, Recipe):
        problems += recipe_contradictions(values)
        if problems:  # else what trains says so itself, with what only it can tell
            problems += unknown_names(values)
    if made is None or problems:
        raise ConfigError(listed(problems, where=where), fix=f"correct {where}")
    return made


def listed(problems: Sequence[str], *, where: str) -> str:
    """One message of a line for each problem, up to a number that can be read."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = list(problems[:_MOST_PROBLEMS])
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"and {len(problems) - _MOST_PROBLEMS} more")
    return f"{where}: {count}\n" + "\n".join(f"  - {line}" for line in lines)


def search_space(tune: TuneConfig) -> Space:
    """The parameters of ``tune.space``; raises one ConfigError that lists every problem."""
    space, problems = read_space(tune.space, Recipe)
    if problems:
        raise ConfigError(listed(problems, where="tune.space"), fix="correct the search space")
    return space


def _problem(model: type[BaseModel], item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    name = printable(".".join(path))[:200]
    if item["type"] == "extra_forbidden" and path[-1] in OUT_OF_SCOPE and _table(model, path[:-1]) is CompressConfig:
        return f"{name}: {OUT_OF_SCOPE[path[-1]]}"
    if item["type"] == "extra_forbidden":
        return f"{name}: unknown key{did_you_mean(path[-1], _keys(model, path[:-1]))}"
    message = item["msg"].removeprefix("Value error, ")
    # Of keys that contradict each other the input is their whole table.
    telling = item["type"] != "missing" and not (item["type"] == "value_error" and isinstance(item["input"], Mapping))
    head = f"{name}: " if name else ""
    return f"{head}{message[0].lower()}{message[1:]}" + (f", got {_shown(item['input'])}" if telling else "")


def _shown(value: object) -> str:
    try:
        return f"{value!r:.100}"
    except ValueError:  # Python does not write out integers of thousands of digits, which TOML reads in hexadecimal
        return "a number of thousands of digits"


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys a table of the recipe may have."""
    table = _table(model, path)
    return [field.alias or name for name, field in table.model_fields.items()] if table else []


def _table(model: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """What the table at ``path`` is read as."""
    for part in path:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return model


def load_recipe(path: Path) -> Recipe:
    """The recipe in ``path``; relative paths in it are taken from its folder."""
    recipe = validate(Recipe, read_toml(path), where=str(path))

    def here(name: str) -> str:
        return str(path.parent / name) if not Path(name).is_absolute() else name

    def file(name: str) -> str:
        return here(name) if name.endswith(".toml") or "/" in name else name

    def teacher(table: Taught) -> str | None:  # another run's folder has a slash in it, a variant's name has none
        return here(table.teacher) if table.teacher and "/" in table.teacher else table.teacher

    data, model, compress = recipe.data, recipe.model, recipe.compress
    if not data.path.startswith("torchvision:"):
        data = data.model_copy(update={"path": here(data.path)})
    if data.exclude:
        data = data.model_copy(update={"exclude": here(data.exclude)})
    if model.weights:
        model = model.model_copy(update={"weights": here(model.weights)})
    baseline = recipe.baseline
    if baseline.report:
        baseline = baseline.model_copy(update={"report": here(baseline.report)})
    compress = compress.model_copy(update={"calibration": file(compress.calibration), "teacher": teacher(compress)})
    train = recipe.train.model_copy(update={"teacher": teacher(recipe.train)})
    targets = tuple(file(name) for name in recipe.targets)
    tables = {"data": data, "model": model, "train": train, "compress": compress, "baseline": baseline}
    return recipe.model_copy(update={**tables, "targets": targets})


def over_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values``, over what a recipe's file states where their ``data.path`` is one (.toml) and no folder of pictures.

    Arguments of the model's constructor are taken one by one, but for another model's. Raises ConfigError when that is
    no recipe.
    """
    path = Path(str(values["data"]["path"]))
    if not _is_recipe(path):
        return dict(values)
    typed = {**values, "data": {key: value for key, value in values["data"].items() if key != "path"}}
    recipe = load_recipe(path)
    model = typed.get("model", {})
    if isinstance(model.get("arguments"), Mapping) and model.get("name", recipe.model.name) == recipe.model.name:
        typed["model"] = {**model, "arguments": {**recipe.model.arguments, **model["arguments"]}}
    return merged(recipe.model_dump(exclude_unset=True), typed)


def _is_recipe(path: Path) -> bool:
    return path.name.endswith(".toml") and not path.is_dir()


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of a recipe, values of ``above`` first."""
    tables = dict(below)
    for name, one in above.items():
        tables[name] = {**(below.get(name) or {}), **one} if isinstance(one, Mapping) else one
    return tables


def load_target(name_or_file: str) -> Target:
    """A shipped target by name, or the user's own TOML file."""
    path = resources.find("targets", name_or_file)
    own = resources.is_file_name(name_or_file) and fits_a_command(name_or_file)
    ours = {"name": path.stem, "typed": name_or_file if own else ""}
    return validate(Target, {**read_toml(path), **ours}, where=f"target {path}")


def load_calibration(name_or_file: str) -> CalibrationRecipe:
    """A shipped calibration recipe by name, or the user's own TOML file."""
    path = resources.find("calibration", name_or_file)
    return validate(CalibrationRecipe, {**read_toml(path), "name": path.stem}, where=f"calibration recipe {path}")
