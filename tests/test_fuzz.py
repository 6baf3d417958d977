"""The fuzzing harnesses: what they once found stays fixed, and a short run of each finds nothing new."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import run as runner
from fuzz.targets import CORPUS, TARGETS, Target, opened

from edgeopt.errors import DataError

_RUNNER = Path(runner.__file__)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Every target in a folder of its own."""
    return {name: opened(name, tmp_path_factory.mktemp(name) / "work") for name in TARGETS}


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_fuzzing_once_found_stays_fixed(path: Path, targets: dict[str, Target]) -> None:
    """Taken or refused with an EdgeoptError: anything else comes through."""
    targets[path.parent.name].case(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_taken(name: str, targets: dict[str, Target]) -> None:
    """Seeds that were refused would fuzz nothing but the first check."""
    seeds = targets[name].seeds()
    taken = [targets[name].case(seed) for seed in seeds]
    assert sum(taken) >= 0.9 * len(taken)


def test_the_runner_knows_every_target() -> None:
    assert sorted(runner.NAMES) == sorted(TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_two_thousand_cases_find_nothing(name: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(_RUNNER), name, "--cases", "2000", "--seed", "7", "--found", str(tmp_path / "found")]
    done = subprocess.run([*command, "--json", str(figures)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = json.loads(figures.read_text())
    assert said["cases"] == 2000
    assert said["findings"] == {}
    assert said["accepted"] > 0
    assert said["peak_rss_mib"] < 1000


def test_a_harness_keeps_what_goes_wrong_and_counts_each_place_once(tmp_path: Path) -> None:
    def case(data: bytes) -> bool:
        if data.startswith(b"a"):
            raise ValueError(f"{len(data)} bytes went wrong")
        return data.startswith(b"b")

    outcome = runner.Outcome()
    for data in (b"a", b"aa", b"b", b"c"):
        runner.tried(case, data, outcome, tmp_path)
    assert (outcome.cases, outcome.accepted) == (4, 1)
    assert list(outcome.findings) == ["ValueError in outside edgeopt: N bytes went wrong"]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"a"]


def test_a_case_is_what_edgeopt_says_and_nothing_else(tmp_path: Path) -> None:
    class Reader(Target):
        name, kind = "reader", "binary"

        def seeds(self) -> list[bytes]:
            return []

        def read(self, data: bytes) -> None:
            if data:
                raise (DataError("no", fix="none") if data == b"ours" else KeyError(data))

    reader = Reader(tmp_path)
    assert reader.case(b"")
    assert not reader.case(b"ours")
    with pytest.raises(KeyError):
        reader.case(b"another")
