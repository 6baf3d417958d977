"""Fuzz every reader of strangers' data and write the figures to ``fuzz.json``: ``python fuzz.py [--cases N]``.

Each target is run by the mutator of ``tests/fuzz`` and, where atheris is installed, once more by coverage. ``fixed``
lists what was found and fixed; the inputs are in ``tests/fuzz/corpus`` and are replayed by ``tests/test_fuzz.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgeopt import environment
from edgeopt.run import now

_HERE = Path(__file__).resolve().parent
_RUNNER = _HERE.parent.parent / "tests" / "fuzz" / "run.py"
_TARGETS = ("onnx", "recipe", "target", "picture", "record")
#: Coverage makes a case of a whole verb ten times as slow, and what it could steer by is in pydantic's compiled code.
_NOT_BY_COVERAGE = ("record",)
#: target, file in the corpus, how it ended before.
_FIXED = (
    ("recipe", "nested-lists.toml", "RecursionError of tomllib"),
    ("recipe", "long-integer.toml", "ValueError: an integer of 5,000 digits"),
    ("recipe", "long-hexadecimal.toml", "ValueError at saying or recording an integer of thousands of digits"),
    ("recipe", "infinity.toml", "ValueError at recording an infinite weight decay"),
    ("recipe", "nan-argument.toml", "ValueError at recording a model's argument that is NaN"),
    ("target", "nested-lists.toml", "RecursionError of tomllib"),
    ("target", "long-integer.toml", "ValueError: an integer of 5,000 digits"),
    ("target", "infinite-budget.toml", "ValueError at writing report.json with an infinite limit"),
    ("record", "candidates-zero-byte.json", "ValueError: the times would be written to a folder that a record named"),
    ("record", "candidates-without-size.json", "KeyError: a field that was read without asking whether it is there"),
    ("record", "candidates-long-board.json", "an error of 100,000 characters"),
    ("record", "no-recommended-verdict.json", "UndefinedError: a report on a latency no engine was measured for"),
    ("picture", "postscript.eps", "Ghostscript was called for a file of any name that is EPS inside"),
)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--figures", type=Path, help="A folder of figures that were made before, TARGET.ENGINE.json.")
    given = parser.parse_args()
    engines = ["mutate", *(["atheris"] if importlib.util.find_spec("atheris") else [])]
    runs = []
    for engine in engines:
        for target in _TARGETS:
            if engine == "mutate" or target not in _NOT_BY_COVERAGE:
                made = given.figures / f"{target}.{engine}.json" if given.figures else None
                runs.append(
                    json.loads(made.read_text()) if made else _run(target, engine, cases=given.cases, seed=given.seed)
                )
    record = {
        "schema": 1,
        "created": now(),
        "command": f"python benchmarks/reliability/fuzz.py --cases {given.cases} --seed {given.seed}",
        "runs": runs,
        "fixed": [{"target": target, "input": name, "ended_before": how} for target, name, how in _FIXED],
        "machine": environment.record(),
    }
    (_HERE / "fuzz.json").write_text(json.dumps(record, indent=1) + "\n")


def _run(target: str, engine: str, *, cases: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, str(_RUNNER), target, "--engine", engine, "--cases", str(cases), "--seed", str(seed)]
        subprocess.run([*command, "--json", str(figures)], check=False)
        found: dict[str, Any] = json.loads(figures.read_text())
        return found


if __name__ == "__main__":
    main()
