"""What was typed: options and texts as values and tables of a recipe, and values as options again."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from edgeopt.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class OrAuto(click.ParamType["int | float | str"]):
    """A number, or the word auto."""

    def __init__(self, number: type[int] | type[float]) -> None:
        self._number = number
        self.name = "integer|auto" if number is int else "float|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click asks for it."""
        try:
            return value if value == "auto" else self._number(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)


def given(**options: Any) -> Mapping[str, Any]:
    """The options that were typed: those that are not None and not an empty tuple."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


def options_of(**stated: Any) -> list[str]:
    """Options as they are typed: ``target=("a", "b")``, ``seconds=3.0``, ``force=True``; not None and False."""
    typed: list[str] = []
    for name, value in stated.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            typed.append(flag)
        elif isinstance(value, (list, tuple)):
            typed += [word for one in value for word in (flag, str(one))]
        elif value is not None and value is not False:
            typed += [flag, str(value)]
    return typed


def settings(keys: Mapping[str, Any], others: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Tables of a recipe from ``table.key`` -> value, None for what was not typed, and from texts ``table.key=value``.

    A value of ``others`` is read as in TOML, and as a word when it is none. Raises ConfigError for texts without =.
    """
    found = {name: value for name, value in keys.items() if value is not None}
    for text in others:
        name, equals, value = text.partition("=")
        if not equals or name.strip().count(".") < 1:
            raise ConfigError(f'--set {text} is not "table.key=value"', fix="write it so: --set augment.rotation=15")
        found[name.strip()] = _value(value.strip())
    tables: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        *path, key = name.split(".")
        table = tables
        for part in path:
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"--set {name} is inside a value, not a table", fix="write it so: --set train.lr=0.01"
                )
            table = inner
        table[key] = value
    return tables


def one_table(table: str, others: Sequence[str]) -> dict[str, Any]:
    """The values of texts ``key=value`` of one table, which may be written before the key: ``table.key=value``."""
    return settings({}, [text if text.startswith(f"{table}.") else f"{table}.{text}" for text in others]).get(table, {})


def as_settings(model_arguments: Sequence[str]) -> list[str]:
    """The texts of ``--model-arg`` as :func:`settings` takes them; raises ConfigError for those without =."""
    for text in model_arguments:
        key, equals, _ = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(
                f'--model-arg {text} is not "key=value"', fix="write it so: --model-arg drop_path_rate=0.1"
            )
    return [f"model.arguments.{text}" for text in model_arguments]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
