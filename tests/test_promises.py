"""Every promise names tests that exist and are not skipped out of hand."""

from __future__ import annotations

import ast
import re
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
    require_tests(promise["tests"])


def test_every_sentence_of_the_security_page_names_tests_that_exist_and_run() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| sentence")]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(test_\w+\.py::test_\w+)`", row)
        assert named, f"no test stands behind: {row}"
        require_tests([f"tests/{test}" for test in named])


def require_tests(tests: list[str]) -> None:
    """Each exists and is not skipped or expected to fail."""
    for test in tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{test} does not exist"
        marks = [ast.unparse(decorator) for decorator in functions[name].decorator_list]
        assert not any("skip" in mark or "xfail" in mark for mark in marks), f"{test} is skipped"
