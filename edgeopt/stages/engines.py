"""Finding and opening engines of a run: which can run here, which is meant when none is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import environment
from edgeopt.backends.base import Backend, Session
from edgeopt.config import Target, validate
from edgeopt.errors import BackendError, MissingStageError, RunError, did_you_mean
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import load_backend
from edgeopt.run import Run, check_name


@dataclass(frozen=True)
class Engine:
    """A built engine of a run. ``key`` is ``target/variant``, its folder under ``device/``."""

    run: Run
    key: str
    record: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.run.path / "device" / self.key

    @property
    def variant(self) -> str:
        return check_name(str(self.record["variant"]))

    @property
    def precision(self) -> str:
        return str(self.record["precision"])

    @property
    def target(self) -> Target:
        """The profile it was built for, as it was then."""
        return validate(Target, self.record["profile"], where=f"{self.key}/build.json")

    @property
    def backend(self) -> Backend:
        backend: Backend = load_backend(str(self.record["backend"]))
        return backend

    @property
    def path(self) -> Path:
        """The engine file, its hash checked; raises BackendError when there is none here."""
        if self.record.get("engine") is None:
            raise BackendError(f"{self.key} has no engine here: {self.record.get('reason')}", fix=self._fix())
        return self.run.output(self.record, str(self.record["engine"]))

    @property
    def preprocess_path(self) -> Path:
        return self.run.path / "host" / self.variant / "preprocess.json"

    @property
    def preprocess(self) -> PreprocessSpec:
        return PreprocessSpec.read(self.preprocess_path)

    def unusable(self) -> str:
        """Why the engine cannot be opened on this machine; empty when it can."""
        if self.record.get("engine") is None:
            return str(self.record.get("reason") or "it was not built")
        if not self.record.get("runs_here", True):
            return str(self.record.get("reason") or "it is for another device")
        if self.record.get("machine") != environment.machine_id():
            return "it was built on another kind of machine"
        parity = self.record.get("parity") or {}
        if not parity.get("ok", True):
            return f"it does not answer as trained: {parity.get('message')}"
        found = self.backend.availability()
        return "" if found.ok else found.reason

    def open(self, *, threads: int = 0) -> Session:
        """A session; raises BackendError with the command that rebuilds an engine that does not fit this machine."""
        reason = self.unusable()
        if reason:
            raise BackendError(f"{self.key} cannot run here: {reason}", fix=self._fix())
        return self.backend.open(self.path, self.target, precision=self.precision, threads=threads)

    def _fix(self) -> str:
        return str(self.record.get("device_command") or f"edgeopt build --target {self.record.get('target')}")


def engines(run: Run) -> dict[str, Engine]:
    """Every committed engine by key, oldest first."""
    found = {}
    for key, record in run.engines().items():
        absent = [name for name in ("profile", "variant", "precision", "backend", "outputs") if name not in record]
        if absent:
            raise RunError(f"{run.path}/device/{key}/build.json lacks {', '.join(absent)}", fix="build it again")
        found[key] = Engine(run, key, record)
    return found


def usable_engines(run: Run) -> dict[str, Engine]:
    """The engines that can be opened on this machine."""
    return {key: engine for key, engine in engines(run).items() if not engine.unusable()}


def pick_engine(run: Run, key: str | None) -> Engine:
    """The engine called ``key``, else the int8 one (any, failing that) built last on this machine."""
    known = engines(run)
    if key is not None:
        if key not in known:
            raise MissingStageError(
                f'{run.path} has no engine "{key}"{did_you_mean(key, known)}',
                fix=f"use one of {', '.join(known)}" if known else "edgeopt build --target onnxruntime",
            )
        return known[key]
    usable = [engine for engine in known.values() if not engine.unusable() and engine.record["backend"] != "pytorch"]
    if not usable:
        raise MissingStageError(
            f"{run.path} has no engine that runs on this machine", fix="edgeopt build --target onnxruntime"
        )
    return ([engine for engine in usable if engine.precision == "int8"] or usable)[-1]


def labels(run: Run) -> tuple[str, ...]:
    """The class names, in the order of the logits."""
    path = run.data / "labels.txt"
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", fix="copy the run folder again") from None


def sets_folder(run: Run, spec: PreprocessSpec) -> Path:
    """Where the prepared sets of this preprocessing are."""
    return run.data / "sets" / spec.key
