"""The public names: sorted, all there, each from where it says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import edgeopt


def test_all_is_sorted_and_what_type_checkers_see() -> None:
    assert edgeopt.__all__ == sorted(edgeopt.__all__)
    tree = ast.parse(Path(edgeopt.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == set(edgeopt.__all__)


@pytest.mark.parametrize("name", edgeopt.__all__)
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    assert getattr(edgeopt, name).__doc__


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        edgeopt.nonsense  # noqa: B018
