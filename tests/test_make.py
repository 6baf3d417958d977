"""The Makefile and `.ci/run`, in a folder of their own with planted interpreters and planted tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import pytest_collection_modifyitems

ROOT = Path(__file__).resolve().parent.parent


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "fails",
    [
        "-m) mkdir -p .venv/bin; touch .venv/bin/python; exit 1;;",  # Debian without python3-venv
        "-c) exit 1;;",  # Python 3.9
        "-m) mkdir -p .venv/bin; cp /bin/false .venv/bin/python;;",  # without pip
    ],
    ids=["no venv", "too old", "no pip"],
)
def test_a_venv_that_could_not_be_made_is_gone_and_the_fix_is_said(fails: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    broken = script(tmp_path / "broken", f'case "$1" in {fails} esac')
    typed = ["make", ".venv/bin/python"]
    done = subprocess.run([*typed, f"PYTHON={broken}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "python3-venv" in done.stderr
    assert "Python >= 3.10" in done.stderr
    assert not (tmp_path / ".venv").exists()
    subprocess.run([*typed, f"PYTHON={sys.executable}"], cwd=tmp_path, capture_output=True, check=True)
    subprocess.run([tmp_path / ".venv/bin/python", "-m", "pip", "--version"], capture_output=True, check=True)


@pytest.mark.parametrize("left", ["", "figures.json"])
def test_ci_fails_when_the_tests_leave_files_in_the_checkout_and_names_them(left: str, tmp_path: Path) -> None:
    (tmp_path / "edgeopt/.ci").mkdir(parents=True)
    checkout = tmp_path / "edgeopt"
    for name in (".ci/run", ".gitignore"):
        shutil.copy(ROOT / name, checkout / name)
    script(checkout / ".venv/bin/python", f"touch ignored.log {left}")
    make = script(tmp_path / "bin/make", "")
    environment = {**os.environ, "PATH": f"{make.parent}{os.pathsep}{os.environ['PATH']}"}
    who = ["-c", "user.name=n", "-c", "user.email=n@localhost", "-c", "commit.gpgsign=false"]
    for typed in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *typed], cwd=checkout, check=True, capture_output=True)
    done = subprocess.run(
        ["bash", ".ci/run"], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == bool(left), done.stdout + done.stderr
    assert left in done.stdout
    assert ("left files in the checkout" in done.stderr) == bool(left)


def test_ci_lints_tests_and_then_runs_the_shard_that_the_commit_says(tmp_path: Path) -> None:
    checkout, log = tmp_path / "edgeopt", tmp_path / "log"
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", checkout / ".ci/run")
    script(checkout / ".venv/bin/python", f'echo "$@" >> {log}')
    make = script(tmp_path / "bin/make", f'echo make "$@" >> {log}')
    commits = ["00000f" + 34 * "0", "a1b2c3" + 34 * "0"]
    shards = []
    for commit in commits:
        script(tmp_path / "bin/git", f'test "$1" = rev-parse && echo {commit} || true')
        environment = {**os.environ, "PATH": f"{make.parent}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(["bash", ".ci/run"], cwd=checkout, env=environment, capture_output=True, check=True)
        *made, slow = log.read_text().splitlines()
        assert made == ["make lint", "make test"]
        typed = re.fullmatch(r"-m pytest -m slow and not gpu --shards (\d+) --shard (\d+)", slow)
        assert typed, slow
        assert int(typed[2]) == int(commit[:6], 16) % int(typed[1])
        shards.append(typed[2])
        log.unlink()
    assert shards[0] != shards[1]


def test_the_shards_together_are_the_slow_tests_each_once() -> None:
    names = [f"tests/test_{number}.py::test" for number in range(11)]
    found: list[str] = []
    for shard in range(4):
        items = [
            SimpleNamespace(nodeid=name, get_closest_marker=lambda mark, name=name: name != names[5]) for name in names
        ]
        options = {"--shards": 4, "--shard": shard, "markexpr": "slow"}
        hook = SimpleNamespace(pytest_deselected=lambda items: None)
        pytest_collection_modifyitems(SimpleNamespace(getoption=options.get, hook=hook), items)  # type: ignore[arg-type]
        found += [item.nodeid for item in items]
    assert sorted(found) == sorted({*names} - {names[5]})  # which is not slow


@pytest.mark.parametrize(("goal", "marks"), [("test", "not slow and not gpu"), ("test-slow", "slow and not gpu")])
def test_make_leaves_slow_tests_to_who_asks_for_them(goal: str, marks: str) -> None:
    typed = ["make", "--no-print-directory", "-n", goal]
    done = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].endswith(f'-m pytest -m "{marks}"')


def test_no_test_may_take_as_long_as_the_shard_it_is_in() -> None:
    """It would be killed with the whole shard, and nothing would say which test it was."""
    (shard,) = map(int, re.findall(r"^timeout (\d+)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for seconds in re.findall(r"pytest\.mark\.timeout\((\d+)\)", path.read_text(encoding="utf-8")):
            assert int(seconds) < shard, path.name
