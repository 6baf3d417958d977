"""Hostile values for every field of a record, and the device half's verbs to run on what comes of them."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from edgeopt.cli import group
from edgeopt.errors import BackendError, EdgeoptError


class _UntimedError(BackendError):
    """Where timing would begin."""


MISSING = object()
_SAID = io.StringIO()  # one for all: click keeps every stream that it once wrote to
VALUES: dict[str, Any] = {
    "traversal": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "up": "..",
    "zero byte": "a\0b",
    "escape": "\x1b[2Jx",
    "half a surrogate": "\ud800",
    "shell": "edgeopt build --target x; rm -rf ~",
    "huge": 10**400,
    "63 bits": 2**63,
    "infinite": float("inf"),
    "largest": 1e308,
    "tiny": 5e-324,
    "nan": float("nan"),
    "negative": -1,
    "fraction": 0.5,
    "zero": 0,
    "empty": "",
    "list": [],
    "object": {},
    "null": None,
    "true": True,
    "long": "x" * 100_000,
    "nested": [[[[[[]]]]]],
    "an object in a list": [{}],
    "missing": MISSING,
}
INT8 = "device/onnxruntime/int8-u8a7w"
#: Each kind of record with one that is there, and the verbs that read it. ``measure`` is ``eval`` that finds no earlier
#: figure, ``candidates`` is ``bench --latency-candidates``; both that and ``bench`` stop short of timing.
RECORDS: dict[str, tuple[str, ...]] = {
    "run.json": ("show", "report", "predict"),
    "host/float/stage.json": ("bench", "show", "report", "measure", "predict", "build", "rm"),
    "host/int8-u8a7w/stage.json": ("bench", "show", "report", "measure", "predict", "build", "rm"),
    "host/ensemble-weighted/ensemble.json": ("show", "rm"),
    "host/int8-u8a7w/preprocess.json": ("bench", "measure", "predict", "build"),
    "host/int8-u8a7w/architecture.json": ("show", "measure", "predict"),
    "host/int8-u8a7w/export/parity.json": ("show", "build"),
    f"{INT8}/build.json": ("bench", "show", "report", "measure", "predict", "build", "rm"),
    f"{INT8}/fusion.json": ("report",),
    f"{INT8}/latency.json": ("show", "report"),
    f"{INT8}/layer_times.json": ("report",),
    f"{INT8}/accuracy.json": ("bench", "report", "eval"),
    "device/onnxruntime/float/accuracy.json": ("report", "measure"),
    "device/pytorch/float/gradcam.json": ("report",),
    "host/float/lr_range.json": ("report",),
    "host/int8-u8a7w/latency/verdict.json": ("report",),
    "host/float/candidates-onnxruntime/candidates.json": ("candidates", "show"),
    "device/onnxruntime/candidates-float/times.json": ("candidates", "report"),
    "data/split.json": ("report",),
    "data/sets/59b79b7af12f/test.json": ("bench", "measure"),
    "data/sets/59b79b7af12f/calib.json": ("build",),
}
SECONDS = 1  # that candidates were timed for
CHANGING = ("build", "rm", "measure", "candidates")  # verbs that change the run
_TYPED = {"measure": "eval", "candidates": "bench"}


def fields(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every field of a record, those inside others too; of a list the first."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, one in inner:
        yield from fields(one, (*path, key))


def planted(record: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A copy of ``record`` with ``value`` in the field at ``path``."""
    changed = copy.deepcopy(record)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


def arguments(verb: str, run: Path, picture: Path) -> list[str]:
    """What a user would type."""
    extra = {
        "predict": [str(picture)],
        "build": ["--target", "onnxruntime", "--force"],
        "rm": ["int8-u8a7w"],
        "candidates": ["--latency-candidates", "--seconds", str(SECONDS)],
    }.get(verb, [])
    return [
        _TYPED.get(verb, verb),
        *extra,
        "--run",
        str(run),
        "--quiet",
        *(["--json"] if verb == "show" else []),
    ]


def outcome(verb: str, run: Path, picture: Path, *more: str) -> str:
    """``done``, or the error that a user would see; any exception but EdgeoptError comes through."""
    _SAID.seek(0)
    _SAID.truncate()
    if verb == "measure":
        (run / INT8 / "accuracy.json").unlink(missing_ok=True)
    found: EdgeoptError | None = None
    try:
        with redirect_stdout(_SAID), redirect_stderr(_SAID), without_torch(), without_timing():
            group.main(args=[*arguments(verb, run, picture), *more], prog_name="edgeopt", standalone_mode=False)
    except EdgeoptError as error:
        found = error
    if found is None or isinstance(found, _UntimedError):
        return "done"
    assert found.fix, f"{verb}: no fix: {found.message}"
    assert len(found.message) < 3000, f"{verb}: {len(found.message)} characters"
    return str(found)


@contextmanager
def without_torch() -> Iterator[None]:
    """As on a device: the verbs look whether torch is there before they take the host half's ways."""
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name == "torch" else real(name, package)

    with mock.patch("importlib.util.find_spec", find_spec):
        yield


@contextmanager
def without_timing() -> Iterator[None]:
    """Timing takes seconds: bench ends where it would begin. Engines are judged in this process, which is watched."""

    def measure(*_: object, **__: object) -> None:
        raise _UntimedError("nothing is timed here", fix="none")

    def judged(engine: Any, pictures: Any, progress: Any) -> Any:
        from edgeopt.evaluate import evaluate

        with engine.open() as session:
            return evaluate(session, pictures, engine.preprocess, progress=progress)

    with (
        mock.patch("edgeopt.stages.bench.measure", measure),
        mock.patch("edgeopt.bench.bed.Bed.timings", measure),
        mock.patch("edgeopt.stages.bench._judged_apart", judged),
    ):
        yield


def copied(source: Path, target: Path) -> Path:
    """A fresh copy of a run."""
    if target.exists():
        shutil.rmtree(target)
    return Path(shutil.copytree(source, target, symlinks=True))


def dump(path: Path, value: Any) -> None:
    """Write JSON as a stranger may: NaN, infinities and half surrogates too."""
    path.write_text(json.dumps(value))
