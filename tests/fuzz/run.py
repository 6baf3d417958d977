"""Fuzz one target: ``python tests/fuzz/run.py TARGET [--cases N] [--seed S] [--engine mutate|atheris]``.

``mutate`` damages valid inputs at random and needs nothing; ``atheris`` (``pip install atheris``) lets what the cases
reach in edgeopt's own code decide which to go on from. A case that ends otherwise than with success or an EdgeoptError
is written to ``--found`` (default: this folder's ``corpus/TARGET``) and counted once for each place it broke at; the
exit code is then 1. ``--json FILE`` takes the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import edgeopt

_TESTS = Path(__file__).resolve().parent.parent
if str(_TESTS) not in sys.path:
    sys.path.insert(0, str(_TESTS))
NAMES = ("onnx", "picture", "recipe", "record", "target")
_SECONDS_A_CASE = 20.0  # longer is a finding


@dataclass
class Outcome:
    """What a run of cases came to."""

    cases: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)  # place and error -> file


def tried(case: Callable[[bytes], bool], data: bytes, outcome: Outcome, found: Path) -> None:
    """Run one case; keep it when it goes wrong in a new way."""
    began = time.monotonic()
    outcome.cases += 1
    place = ""
    try:
        outcome.accepted += case(data)
    except Exception as error:  # noqa: BLE001 - finding these is what this is for
        place = _place(error)
    took = time.monotonic() - began
    outcome.slowest_s = max(outcome.slowest_s, took)
    if not place and took > _SECONDS_A_CASE:
        place = f"took {took:.0f} s"
    if place and place not in outcome.findings:
        found.mkdir(parents=True, exist_ok=True)
        path = found / hashlib.sha256(data).hexdigest()[:12]
        path.write_bytes(data)
        outcome.findings[place] = path.name
        print(f"case {outcome.cases}: {place}: {path}", flush=True)


def _place(error: Exception) -> str:
    package = Path(edgeopt.__file__).parent
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    where = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "outside edgeopt"
    said = re.sub(r"\d+", "N", f"{error!s:.120}")  # the same with another number is the same
    return f"{type(error).__name__} in {where}: {said}"


def fuzz(name: str, *, cases: int, seed: int, found: Path, folder: Path) -> Outcome:
    """``cases`` mutations of the target's seeds and of what once went wrong with it."""
    from fuzz.mutate import mutated
    from fuzz.targets import opened

    target, rng, outcome = opened(name, folder), random.Random(seed), Outcome()
    seeds = [*target.seeds(), *(path.read_bytes() for path in target.corpus())]
    began = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):  # what was done by then counts
        for number in range(cases):
            data = rng.choice(seeds)
            tried(target.case, data[: target.prefix] + mutated(data[target.prefix :], target.kind, rng), outcome, found)
            if number % 10_000 == 9_999:
                passed = time.monotonic() - began
                print(f"{name}: {number + 1} of {cases}, {passed:.0f} s, {peak_mib():.0f} MiB", flush=True)
    outcome.seconds = time.monotonic() - began
    return outcome


def fuzz_with_coverage(name: str, *, cases: int, seed: int, found: Path, folder: Path) -> Outcome:
    """The same by atheris, whose libFuzzer ends the process: so it runs in a child that leaves its figures behind."""
    figures = folder / "figures.json"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, name, "--engine", "atheris-child", "--cases", str(cases), "--seed", str(seed)]
    command += ["--found", str(found), "--json", str(figures)]
    subprocess.run(command, check=False, env={**os.environ, "EDGEOPT_FUZZ_FOLDER": str(folder)})
    return Outcome(**json.loads(figures.read_text()))


def _atheris_child(name: str, *, cases: int, seed: int, found: Path, figures: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["edgeopt", "PIL"]):
        from fuzz.mutate import mutated
        from fuzz.targets import opened

        folder = Path(os.environ["EDGEOPT_FUZZ_FOLDER"])
        target = opened(name, folder / "scratch")
    outcome, began = Outcome(), time.monotonic()
    seeds = [*target.seeds(), *(path.read_bytes() for path in target.corpus())]
    kept = folder / "seeds"
    kept.mkdir()
    for index, data in enumerate(seeds):
        (kept / str(index)).write_bytes(data)

    def one(data: bytes) -> None:
        tried(target.case, data, outcome, found)
        if outcome.cases % 1000 == 0 or outcome.cases >= cases:
            outcome.seconds = time.monotonic() - began
            figures.write_text(json.dumps(vars(outcome)))
        if outcome.cases % 10_000 == 0:
            print(f"{name}: {outcome.cases} of {cases}, {outcome.seconds:.0f} s, {peak_mib():.0f} MiB", flush=True)
        if outcome.cases >= cases:
            os._exit(0)  # libFuzzer counts its own start as cases as well

    def mutator(data: bytes, max_size: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        if rng.random() < 0.4:  # what is broken in one place gets no further by being broken in another
            data = rng.choice(seeds)
        return (data[: target.prefix] + mutated(data[target.prefix :], target.kind, rng))[:max_size]

    options = [f"-seed={seed}", f"-runs={cases * 2}", "-max_len=200000", "-timeout=60", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, "-verbosity=0", str(kept)], one, custom_mutator=mutator)
    atheris.Fuzz()


def peak_mib() -> float:
    """Largest resident size so far of this program; ``ru_maxrss`` would include what the forking process had."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("mutate", "atheris", "atheris-child"), default="mutate")
    parser.add_argument("--found", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = given.found or Path(__file__).parent / "corpus" / given.target
    warnings.simplefilter("ignore")
    options: dict[str, Any] = {"cases": given.cases, "seed": given.seed, "found": found}
    if given.engine == "atheris-child":
        _atheris_child(given.target, figures=given.json, **options)
        return 0
    from fuzz.targets import scratch  # not before: what is imported already cannot be instrumented

    with tempfile.TemporaryDirectory(dir=scratch(), prefix="edgeopt-fuzz-") as folder:
        work = fuzz if given.engine == "mutate" else fuzz_with_coverage
        outcome = work(given.target, folder=Path(folder) / "work", **options)
    figures = {"target": given.target, "engine": given.engine, "seed": given.seed, **vars(outcome)}
    figures |= {"seconds": round(outcome.seconds, 1), "peak_rss_mib": round(peak_mib())}
    print(json.dumps(figures, indent=1))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
