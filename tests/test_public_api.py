"""The public names: sorted, all there, each from where it says."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest

import edgeopt
from edgeopt import api


@pytest.mark.parametrize("module", [edgeopt, api], ids=lambda module: module.__name__)
def test_all_is_sorted_and_what_type_checkers_see(module: ModuleType) -> None:
    assert module.__all__ == sorted(module.__all__)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    seen = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == set(module.__all__)


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in (edgeopt, api) for name in module.__all__], ids=str
)
def test_every_public_name_loads_and_is_documented(module: ModuleType, name: str) -> None:
    loaded = getattr(module, name)
    assert callable(loaded)  # a package of the same name would hide a function once it is imported
    assert loaded.__doc__


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        edgeopt.nonsense  # noqa: B018
