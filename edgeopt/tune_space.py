"""The space a hyperparameter search draws from: keys of a recipe, each with a range or a list of values, checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

from edgeopt.errors import did_you_mean
from edgeopt.files import printable

_RANGE = ("low", "high", "log", "step")
#: Keys that may not vary, each with the reason.
_FIXED = {
    "data.path": "trials are compared on the same pictures",
    "data.val": "trials are compared on the same pictures",
    "data.test": "trials are compared on the same pictures",
    "data.seed": "trials are compared on the same pictures",
    "data.max_pixels": "trials are compared on the same pictures",
    "data.max_test": "no trial looks at test",
    "data.exclude": "trials are compared on the same pictures",
    "data.group_near": "trials are compared on the same pictures",
    "train.epochs": "every trial may have as many; state it once, in [train] or with --epochs",
    "train.time": "every trial may take as long; state it once, in [train]",
    "train.folds": "a trial is one training, and the recipe that is found may have folds",
    "train.keep": "a trial is one training, and the recipe that is found may have folds",
    "train.select": "it is what trials are compared by",
    "train.seed": "the best seed on val is noise",
    "train.loss_arguments": "name one of them, as in train.loss_arguments.gamma",
    "model.arguments": "name one of them, as in model.arguments.drop_rate",
    "model.weights": "weights are of one model; tune each in a study of its own",
}
_TABLES = ("data", "model", "train", "augment")
#: Tables of a recipe whose keys are free.
_OPEN = ("model.arguments", "train.loss_arguments")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; integers when ``integer``, evenly by logarithm when ``log``."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that must be permitted for all to be."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that must be permitted for all to be."""
        return self.values


Parameter: TypeAlias = Range | Choice
Space: TypeAlias = dict[str, Parameter]


def read_space(stated: Mapping[str, Any], recipe: type[BaseModel]) -> tuple[Space, list[str]]:
    """The parameters that ``stated`` describes, by the recipe's keys, and every problem there is, as ``key: reason``.

    Keys may be dotted or tables inside tables; each value is checked as ``recipe`` would check it.
    """
    space: Space = {}
    problems = []
    for key, value in _flat(stated):
        shown = printable(key)[:120]
        if problem := _not_tunable(key, recipe):
            problems.append(f"{shown}: {problem}")
            continue
        try:
            parameter = _parameter(key, value, recipe)
        except ValueError as error:
            problems.append(f"{shown}: {error}")
            continue
        wrong = next((found for one in parameter.examples if (found := refusal(key, one, recipe))), None)
        if wrong:
            problems.append(f"{shown}: {wrong}")
        else:
            space[key] = parameter
    return space, problems


def with_value(tables: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """``tables`` of a recipe with the value of a dotted key replaced."""
    head, _, rest = key.partition(".")
    inner = with_value(tables.get(head) or {}, rest, value) if rest else value
    return {**tables, head: inner}


def refusal(key: str, value: Any, recipe: type[BaseModel]) -> str:
    """Why a recipe does not take ``value`` for ``key``; empty when it does."""
    try:
        recipe.model_validate(with_value({"data": {"path": "photos"}}, key, value))
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        return f"{message[0].lower()}{message[1:]}, got {value!r:.60}"
    return ""


def _flat(stated: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and what is stated for them: a table is a range when it has a key of one."""
    for name, value in stated.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not (set(value) & set(_RANGE)) and value:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _not_tunable(key: str, recipe: type[BaseModel]) -> str:
    table, _, name = key.partition(".")
    if key in _FIXED:
        return f"is the same for every trial: {_FIXED[key]}"
    if any(key.startswith(f"{one}.") and key.count(".") == 2 for one in _OPEN):
        return ""
    known = [f"{one}.{field}" for one in _TABLES for field in _fields(recipe, one) if f"{one}.{field}" not in _FIXED]
    if table in recipe.model_fields and table not in _TABLES:
        return "is no part of a trial, which trains and does nothing else"
    if key not in known:
        elsewhere = [one for one in known if one.partition(".")[2] == (name or key)]
        near = f' (did you mean "{elsewhere[0]}"?)' if elsewhere else did_you_mean(key, known)
        return f"unknown key of a recipe{near}"
    return ""


def _fields(recipe: type[BaseModel], table: str) -> list[str]:
    annotation = recipe.model_fields[table].annotation
    assert isinstance(annotation, type)
    assert issubclass(annotation, BaseModel)
    return list(annotation.model_fields)


def _parameter(key: str, value: Any, recipe: type[BaseModel]) -> Parameter:
    if isinstance(value, Mapping):
        return _range(key, value, recipe)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of values, or a range such as {{ low = 1, high = 2 }}, got {value!r:.60}")
    if not value:
        raise ValueError("the list has no values")
    labels = [json.dumps(one) for one in value]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"the list has {twice} twice")
    return Choice(tuple(tuple(one) if isinstance(one, list) else one for one in value))


def _range(key: str, value: Mapping[str, Any], recipe: type[BaseModel]) -> Range:
    if unknown := next((name for name in value if name not in _RANGE), None):
        near = did_you_mean(unknown, _RANGE)
        raise ValueError(f"a range has low, high, log and step, no {printable(unknown)!r:.40}{near}")
    if missing := next((name for name in ("low", "high") if name not in value), None):
        raise ValueError(f"the range has no {missing}")
    low, high, step, log = value["low"], value["high"], value.get("step"), value.get("log", False)
    numbers = [low, high] if step is None else [low, high, step]
    if not all(type(one) in (int, float) and math.isfinite(one) for one in numbers) or type(log) is not bool:
        raise ValueError("low, high and step must be numbers, log true or false")
    if not low < high:
        raise ValueError(f"low must be under high, got {low} and {high}")
    if step is not None and (log or not 0 < step <= high - low):
        raise ValueError("step must be positive, at most the range, and goes without log")
    if log and low <= 0:
        raise ValueError(f"low must be positive where log is true, got {low}")
    integer = type(low) is int and type(high) is int and type(step) in (int, type(None))
    # 0 and 1 are the ends of many ranges of fractions too.
    if integer and not key.startswith(_OPEN):
        integer = bool(refusal(key, low + 0.5, recipe))
    return Range(low, high, log, step, integer)
