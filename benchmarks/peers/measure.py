"""Measures what the recipes left, all the same way: answers on the same test pictures, audit, interleaved timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peers.plain import NAME as PLAIN
from peers.plain import PlainOnnxRuntimeBackend

from edgeopt import Run
from edgeopt.backends.capability import processor
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.backends.onnxruntime import OnnxRuntimeBackend
from edgeopt.backends.openvino import OpenVinoBackend, OpenVinoSession
from edgeopt.bench import BenchResult, EngineSpec, bench
from edgeopt.bench.result import bounds
from edgeopt.config import Target
from edgeopt.errors import BackendError, EdgeoptError
from edgeopt.evaluate import evaluate
from edgeopt.files import read_json, write_json
from edgeopt.metrics import MIN_WINDOWS
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import load_backend
from edgeopt.sets import PictureSet
from edgeopt.stages.bench import ORIGINAL_TARGET, prepared_test
from edgeopt.stages.engines import engines

FLOAT = "float"  # the peer that is no tool: the float model itself, in every runtime
EAGER = f"pytorch/{FLOAT}"
RUNTIMES = ("onnxruntime", "openvino")


@dataclass
class Engine:
    """One file on one runtime; ``key`` is ``runtime/peer``. ``fusion`` as in ``fusion.json``, None for PyTorch."""

    key: str
    spec: EngineSpec
    files: tuple[Path, ...]
    fusion: dict[str, Any] | None = None
    exact: Path | None = None  # an ONNX whose sums saturate here, to be asked with exact ones as well
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


class Course:
    """The run, its test pictures, and the engines on them; what was answered before is not asked again."""

    def __init__(self, work: Path, inputs: dict[str, Any]) -> None:
        self.work, self.run = work, Run.open(work / inputs["run"])
        self.preprocess = work / "inputs" / "float" / "preprocess.json"
        self.spec = PreprocessSpec.read(self.preprocess)

    @property
    def pictures(self) -> PictureSet:
        return prepared_test(self.run, self.spec)

    def float_engines(self) -> dict[str, Engine | str]:
        """The float model in eager PyTorch and in both runtimes."""
        weights = self.work / "inputs" / "float" / "model.safetensors"
        eager = EngineSpec(EAGER, "pytorch", weights, ORIGINAL_TARGET, "fp32")
        folder = self.work / "peers" / FLOAT
        folder.mkdir(parents=True, exist_ok=True)
        onnx = self.work / "inputs" / "float.onnx"
        return {EAGER: Engine(EAGER, eager, (weights,)), **self.foreign(FLOAT, onnx, folder, "fp32")}

    def foreign(self, peer: str, model: Path, folder: Path, precision: str = "int8") -> dict[str, Engine | str]:
        """An ONNX on both runtimes, an IR on OpenVINO; or why not, by key."""
        openers: dict[str, Callable[..., Engine]] = {"openvino": self._openvino}
        if model.suffix == ".onnx":
            openers = {"onnxruntime": self._onnxruntime, **openers}
        found: dict[str, Engine | str] = {}
        for runtime, opened in openers.items():
            key = f"{runtime}/{peer}"
            try:
                found[key] = opened(key, model, folder, precision)
            except EdgeoptError as error:
                found[key] = " ".join(error.message.split())[:300]
        return found

    def own(self, run_path: Path, peer: str) -> dict[str, Engine | str]:
        """The int8 engines that edgeopt built in a run of its own."""
        found: dict[str, Engine | str] = {}
        for engine in engines(Run.open(run_path)).values():
            if engine.precision == "int8" and engine.record["target"] in RUNTIMES:
                key = f"{engine.record['target']}/{peer}"
                spec = EngineSpec(key, str(engine.record["backend"]), engine.path, engine.target, "int8")
                found[key] = Engine(key, spec, tuple(engine.files), dict(engine.record["fusion"]))
        return found

    def _onnxruntime(self, key: str, model: Path, folder: Path, precision: str) -> Engine:
        target = Target(schema=1, name=PLAIN, title="ONNX Runtime as it comes", backend=PLAIN, precision=precision)
        files = (model, *sorted(model.parent.glob(f"{model.name}[._]*data")))
        if len(files) > 1:  # edgeopt opens no files that a model names, and these are the same model in one
            import onnx

            model = folder / "whole.onnx"
            onnx.save(onnx.load(str(files[0])), str(model))
        fusion = PlainOnnxRuntimeBackend().audit(model, self.spec.input_shape).to_json()
        saturates = precision == "int8" and processor() == "x86" and read_onnx(model).weights_need_8_bits()
        spec = EngineSpec(key, PLAIN, model, target, precision)
        return Engine(key, spec, files, fusion, model if saturates else None)

    def _openvino(self, key: str, model: Path, folder: Path, precision: str) -> Engine:
        if model.suffix == ".onnx":
            import openvino

            converted = folder / "converted.xml"
            try:
                openvino.save_model(openvino.convert_model(str(model)), str(converted), compress_to_fp16=False)
            except Exception as error:
                said = str(error).rpartition("Summary:")[2].strip(" -\n")
                raise BackendError(f"OpenVINO does not convert it: {said}", fix="see the tool's own issues") from error
            model = converted
        target = Target(schema=1, name="openvino", title="OpenVINO", backend="openvino", precision=precision)
        with OpenVinoBackend().open(model, target, precision=precision, threads=1) as session:
            assert isinstance(session, OpenVinoSession)
            fusion = session.audit().to_json()
        files = (model, model.with_suffix(".bin"))
        return Engine(key, EngineSpec(key, "openvino", model, target, precision), files, fusion)

    def ask(self, engine: Engine, made_key: str) -> None:
        """Fill ``engine.answers``: ``right``, a digit a test picture in the set's order, and ``top1_exact``."""
        record = self.work / "peers" / f"{engine.key.replace('/', '-')}.json"
        if record.is_file() and (known := read_json(record))["made_key"] == made_key:
            engine.answers = known
            return
        with load_backend(engine.spec.backend).open(
            engine.spec.engine, engine.spec.target, precision=engine.spec.precision
        ) as session:
            right = _right(session, self.pictures, self.spec)
        exact = None
        if engine.exact is not None:
            target = engine.spec.target.model_copy(update={"backend": "onnxruntime"})
            with OnnxRuntimeBackend().open(engine.exact, target, precision="int8") as session:
                exact = float(_right(session, self.pictures, self.spec).mean())
        engine.answers = {"made_key": made_key, "right": "".join("01"[int(one)] for one in right), "top1_exact": exact}
        write_json(record, engine.answers)

    def time(self, timed: list[Engine], seconds: float, tell: Callable[[int, int], None]) -> BenchResult:
        """All of ``timed`` interleaved in one session, eager PyTorch first: that is what ratios are to."""
        folder = self.run.data / "sets" / self.spec.key
        return bench(
            [engine.spec for engine in timed],
            pictures=folder,
            preprocess=self.preprocess,
            seconds=seconds,
            width=0.01,  # until time is up, but for the very still
            starts=MIN_WINDOWS,  # from so many on intervals hold at 95 % however processes differ
            progress=tell,
        )


def _right(session: Any, pictures: PictureSet, spec: PreprocessSpec) -> Any:
    """bool (N,): batches of one, which every file takes, whatever its batch was fixed to."""
    answers = evaluate(session, pictures, spec, batch=1)
    return np.asarray(answers.predictions == answers.labels)


def timing(result: BenchResult, key: str) -> dict[str, Any]:
    """An engine's milliseconds and its ratio to eager PyTorch, or why there are none."""
    if key not in result.engines:
        return {"timing_error": result.failures.get(key, "it was not timed")}
    engine = result.engines[key]
    ratio, throughput = result.ratio(key, EAGER), engine.throughput()
    return {
        "p50_ms": engine.p50.value,
        "p50_ci_ms": bounds(engine.p50),
        "speedup": ratio.value,
        "speedup_ci": bounds(ratio),
        "throughput_ips": throughput.value,
        "window_medians_ms": [round(one, 5) for one in engine.window_medians_ms],
        "windows_by_start": list(engine.starts),
        "other_load_cores": engine.other_load_cores,
        "stable": engine.stable,
    }


def session_record(result: BenchResult) -> dict[str, Any]:
    """What all that was timed together shares."""
    some = next(iter(result.engines.values()))
    shared = {"id": result.id, "rounds": result.rounds, "seconds": round(result.seconds, 1)}
    return {**shared, "threads": some.spec.threads, "machine": dict(result.machine_before)}
