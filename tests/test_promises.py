"""Every promise names tests that exist and are not skipped out of hand."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROMISES = tomllib.loads((ROOT / "tests" / "promises.toml").read_text())["promise"]


@pytest.mark.parametrize("promise", PROMISES, ids=[promise["text"][:60] for promise in PROMISES])
def test_the_tests_of_a_promise_exist_and_run(promise: dict[str, list[str]]) -> None:
    assert promise["tests"], "a promise without a test"
    for test in promise["tests"]:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{test} does not exist"
        marks = [ast.unparse(decorator) for decorator in functions[name].decorator_list]
        assert not any("skip" in mark or "xfail" in mark for mark in marks), f"{test} is skipped"
