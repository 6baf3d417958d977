"""Finding and opening engines of a run: which can run here, which is meant when none is named."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import environment, records
from edgeopt.backends.base import Backend, Session
from edgeopt.config import Target, validate
from edgeopt.errors import BackendError, MissingStageError, RunError, did_you_mean
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import backends, load_backend
from edgeopt.run import Run


@dataclass(frozen=True)
class Engine:
    """A built engine of a run. ``key`` is ``target/variant``, its folder under ``device/``.

    ``trusted``: the user said that engines from elsewhere may be opened. Without it two kinds are not.
    An engine of another kind of machine: nobody checked here that it answers as trained, and OpenVINO's int8 kernels
    saturate on some CPUs without a word. And, where the backend's engines are native code (TensorRT's plans), one of
    another host: whoever wrote it can run anything here. The machine's kind alone would not do for those, since a
    stranger can own the same. ONNX and OpenVINO's IR are graphs of known operators, data that the runtime checks: a
    file that is as its record says, of a machine of this kind, is opened whoever made it.
    """

    run: Run
    key: str
    record: Mapping[str, Any]
    trusted: bool = False

    @property
    def folder(self) -> Path:
        return self.run.path / "device" / self.key

    @property
    def variant(self) -> str:
        return str(self.record["variant"])

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
        """The engine file, its hash and those of its companions checked; BackendError when there is none here."""
        if self.record.get("engine") is None:
            raise BackendError(f"{self.key} has no engine here: {self.record.get('reason')}", fix=self._rebuild())
        return self.files[0]

    @property
    def files(self) -> list[Path]:
        """The files the engine consists of, the one to open first, their hashes checked."""
        name = str(self.record["engine"])
        # OpenVINO keeps the weights in a file beside, of the same name.
        beside = [other for other in self.record["outputs"] if other != name and Path(other).stem == Path(name).stem]
        return [self.run.output(self.record, one) for one in (name, *beside)]

    @property
    def temperature(self) -> float:
        """What its logits are divided by before they become probabilities: fitted on val for its variant."""
        figures = self.run.variant(self.variant).get("metrics") or {}
        return float(figures.get("temperature") or 1.0)

    @property
    def preprocess_path(self) -> Path:
        """``preprocess.json`` of its variant, its hash checked."""
        return self.run.output(self.run.variant(self.variant), "preprocess")

    @property
    def preprocess(self) -> PreprocessSpec:
        return PreprocessSpec.read(self.preprocess_path)

    def unusable(self) -> str:
        """Why the engine cannot be opened on this machine; empty when it can."""
        if self.record.get("engine") is not None and self.record.get("runs_here") is False:
            return str(self.record.get("reason") or "it is for another device")
        return self.unsound() or self._foreign() or self._unavailable()

    def unsound(self) -> str:
        """Why the engine should be used nowhere; empty when it may be."""
        if self.record.get("engine") is None:
            return str(self.record.get("reason") or "it was not built")
        if self.record["backend"] not in backends():
            return f"its backend {self.record['backend']} is not installed here"
        parity = self.record.get("parity") or {}
        if not parity.get("ok", True):
            return f"it does not answer as trained: {parity['message']}"
        return self._outdated()

    def foreign(self) -> str:
        """Why it is not opened though this machine could run it, having been built on another; else empty."""
        elsewhere = self.record.get("runs_here") is False or self.unsound() or self._unavailable()
        return "" if elsewhere else self._foreign()

    def open(self, *, threads: int = 0) -> Session:
        """A session; raises BackendError with the command that rebuilds an engine that does not fit this machine."""
        reason = self.unusable()
        if reason:
            trust = "; or, if you trust who built it, give --trust-engine" if self._foreign() else ""
            raise BackendError(f"{self.key} cannot run here: {reason}", fix=self._rebuild() + trust)
        return self.backend.open(self.path, self.target, precision=self.precision, threads=threads)

    def _outdated(self) -> str:
        """Why it is not its variant's engine any more; empty when it is, or where that cannot be told."""
        if self.record["backend"] == "pytorch":
            made = self.run.variants().get(self.variant, {}).get("outputs", {}).get("model")
            same = made is None or made["sha256"] in {one["sha256"] for one in self.record["outputs"].values()}
        else:
            stated, path = self.record.get("onnx_sha256"), self.run.path / "host" / self.variant / "export/parity.json"
            try:
                export = records.read(records.ExportRecord, path) if stated and path.is_file() else None
            except RunError:  # a damaged export stops a build, not the engines that are there
                export = None
            same = export is None or stated in {one["sha256"] for one in export["outputs"].values()}
        return "" if same else "its variant was made again since"

    def _foreign(self) -> str:
        """Why an engine built elsewhere is not opened; empty when it is from here, or trusted."""
        if self.trusted:
            return ""
        if self.record.get("machine") != environment.machine_id():
            return "it was built on another kind of machine"
        if self.backend.native_code and self.record.get("host") != environment.host_id():
            return "it was built on another machine, and is native code"
        return ""

    def _unavailable(self) -> str:
        found = self.backend.availability()
        if not found.ok:
            return found.reason
        built_with = self.record.get("backend_version") or found.version
        if self.backend.version_bound and built_with != found.version:
            return f"it is for {self.backend.name} {built_with:.100} alone, and here is {found.version}"
        return ""

    def _rebuild(self) -> str:
        """The command that makes the engine here; its words are ours, since a stranger's record is no advice."""
        made_here = self.record.get("engine") is not None and self.record.get("machine") == environment.machine_id()
        force = " --force" if made_here and self.record.get("runs_here") is not False else ""
        target = self.record["profile"].get("typed") or self.record["target"]
        return f"edgeopt build --target {shlex.quote(str(target))}{force}"


def engines(run: Run, *, trust_engine: bool = False) -> dict[str, Engine]:
    """Every committed engine by key, oldest first; those whose record is damaged are left out."""
    return {key: Engine(run, key, record, trust_engine) for key, record in run.engines().items()}


def usable_engines(run: Run, *, trust_engine: bool = False) -> dict[str, Engine]:
    """The engines that can be opened on this machine."""
    known = engines(run, trust_engine=trust_engine)
    return {key: engine for key, engine in known.items() if not engine.unusable()}


def left_out(run: Run, *, trust_engine: bool = False) -> dict[str, str]:
    """Why engines cannot be opened here, by key."""
    reasons = {key: engine.unusable() for key, engine in engines(run, trust_engine=trust_engine).items()}
    reasons |= {key: error.message for key, error in run.damaged_engines().items()}
    return {key: reason for key, reason in reasons.items() if reason}


def built_elsewhere(run: Run, *, trust_engine: bool = False) -> dict[str, str]:
    """By key, why engines that this machine could run had it built them are not opened."""
    known = engines(run, trust_engine=trust_engine)
    return {key: reason for key, engine in known.items() if (reason := engine.foreign())}


def pick_engine(run: Run, key: str | None, *, trust_engine: bool = False) -> Engine:
    """The engine called ``key``, else the int8 one (any, failing that) built last on this machine."""
    known = engines(run, trust_engine=trust_engine)
    if key is not None:
        damaged = run.damaged_engines()
        if key in damaged:
            raise damaged[key]
        if key not in known:
            raise MissingStageError(
                f'{run.path} has no engine "{key}"{did_you_mean(key, known)}',
                fix=f"use one of {', '.join(known)}" if known else "edgeopt build --target onnxruntime",
            )
        return known[key]
    usable = [engine for engine in known.values() if not engine.unusable() and engine.record["backend"] != "pytorch"]
    if not usable:
        raise _none_usable(run, trust_engine=trust_engine)
    return ([engine for engine in usable if engine.precision == "int8"] or usable)[-1]


def _none_usable(run: Run, *, trust_engine: bool) -> MissingStageError:
    """The error that says why no engine of the run can be opened here."""
    reasons = left_out(run, trust_engine=trust_engine)
    listed = "; ".join(f"{key}: {reason}" for key, reason in list(reasons.items())[:3])
    return MissingStageError(
        f"{run.path} has no engine that runs on this machine{f' ({listed})' if listed else ''}",
        fix="edgeopt build --target onnxruntime",
    )


def require_torch() -> None:
    """That variants can be run here, which are PyTorch models; raises MissingBackendError with what to install."""
    backend: Backend = load_backend("pytorch")
    backend.require()


def labels(run: Run) -> tuple[str, ...]:
    """The class names, in the order of the logits."""
    return records.read_labels(run.data / "labels.txt")


def sets_folder(run: Run, spec: PreprocessSpec) -> Path:
    """Where the prepared sets of this preprocessing are."""
    return run.data / "sets" / spec.key
