"""As much of JSON Schema (draft 2020-12) as edgeopt's own schemas use; a word it does not know is an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_KINDS: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "const": lambda value, wanted: value == wanted,
    "enum": lambda value, wanted: value in wanted,
    "minimum": lambda value, wanted: value >= wanted,
    "maximum": lambda value, wanted: value <= wanted,
    "minItems": lambda value, wanted: len(value) >= wanted,
    "maxItems": lambda value, wanted: len(value) <= wanted,
    "minLength": lambda value, wanted: len(value) >= wanted,
    "maxLength": lambda value, wanted: len(value) <= wanted,
    "pattern": lambda value, wanted: re.search(wanted, value) is not None,
}
_SILENT = {"$schema", "$defs", "title", "description", "default", "type"}


def misfit(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, place: str = "") -> str:
    """Where and why ``value`` does not fit ``schema``; empty when it does."""
    root = root or schema
    if "type" in schema and not _KINDS[schema["type"]](value):
        return f"{place}: is no {schema['type']}"
    for word, wanted in schema.items():
        if word in _SILENT:
            continue
        found = _inner(value, word, wanted, root, place) if word in _NESTED else ""
        if word not in _NESTED and not _CHECKS[word](value, wanted):
            found = f"{place}: {word} {wanted}"
        if found:
            return found
    return ""


_NESTED = {"$ref", "anyOf", "required", "properties", "items", "prefixItems", "additionalProperties", "propertyNames"}


def _inner(value: Any, word: str, wanted: Any, root: dict[str, Any], place: str) -> str:
    def below(name: object) -> str:
        return f"{place}.{name}".lstrip(".")

    if word == "$ref":
        return misfit(value, root["$defs"][wanted.rpartition("/")[2]], root, place)
    if word == "anyOf":
        return "" if any(not misfit(value, one, root, place) for one in wanted) else f"{place}: fits none"
    if word == "required":
        lacking = sorted(set(wanted) - set(value))
        return f"{place}: lacks {', '.join(lacking)}" if lacking else ""
    if word == "propertyNames":
        parts = [(below(name), name, wanted) for name in value]
    elif word == "properties":
        parts = [(below(name), value[name], inner) for name, inner in wanted.items() if name in value]
    elif word == "items":
        parts = [(below(index), one, wanted) for index, one in enumerate(value)]
    elif word == "prefixItems":
        parts = [(below(index), one, inner) for index, (one, inner) in enumerate(zip(value, wanted, strict=True))]
    else:
        parts = [] if wanted is True else [(below(name), one, wanted) for name, one in value.items()]
    return next((found for where, one, inner in parts if (found := misfit(one, inner, root, where))), "")
