"""Where candidates are built, timed against each other and profiled: one target, one temporary folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeopt.backends.audit import layer_of
from edgeopt.backends.base import Backend, BuildRequest
from edgeopt.bench import BenchResult, EngineSpec, bench
from edgeopt.config import Target
from edgeopt.console import NotedProgress
from edgeopt.errors import BackendError
from edgeopt.files import sha256, write_json
from edgeopt.preprocess import PreprocessSpec, normalize
from edgeopt.schemes import Scheme

_PICTURES = 8


@dataclass(frozen=True)
class Bed:
    """Builds and measures int8 engines of one target. ``spec`` says how large pictures are unless stated otherwise."""

    backend: Backend
    target: Target
    scheme: Scheme
    spec: PreprocessSpec
    folder: Path

    def build(self, name: str, onnx: Path, spec: PreprocessSpec | None = None) -> EngineSpec:
        """The engine of a QDQ file, ready to be measured; raises BackendError when it cannot run here."""
        spec = spec or self.spec
        folder = self.folder / "engines" / name
        folder.mkdir(parents=True)
        shape = spec.input_shape
        built = self.backend.build(BuildRequest(onnx, folder, self.target, "int8", self.scheme, shape))
        if built.engine is None or not built.runs_here:
            raise BackendError(
                f"{self.target.name} cannot be timed here: {built.reason or 'its engines run elsewhere'}",
                fix="run compress --latency on the device itself, or prune by MACs: --prune 0.3",
            )
        pictures = self.folder / "pictures" / spec.key
        if not pictures.is_dir():
            _write_noise(pictures, spec)
        return EngineSpec(
            name,
            self.target.backend,
            folder / built.engine,
            self.target,
            "int8",
            pictures=pictures,
            preprocess=pictures / "preprocess.json",
        )

    def measure(
        self, engines: Sequence[EngineSpec], seconds: float, *, width: float, progress: NotedProgress | None = None
    ) -> BenchResult:
        """All of them, interleaved. Stops before ``seconds`` once their ratios to the first are known to ``width``."""
        assert engines[0].pictures is not None
        assert engines[0].preprocess is not None
        return bench(
            engines,
            pictures=engines[0].pictures,
            preprocess=engines[0].preprocess,
            seconds=seconds,
            width=width,
            threads=self.target.session.threads,
            progress=progress,
        )

    def layer_times(self, engine: EngineSpec, layers: Iterable[str]) -> dict[str, float]:
        """The share (0-1) of a profiled call that each of ``layers`` takes; empty where there is no profiler."""
        shape = self.spec.input_shape
        batch = np.zeros((self.target.batch, *shape), np.float32)
        times = self.backend.layer_times(
            engine.engine, self.target, precision="int8", threads=self.target.session.threads, batch=batch
        )
        total, known = sum(times.values()), set(layers)
        found: dict[str, float] = {}
        for name, microseconds in times.items():
            layer = layer_of(name, known)
            if layer is not None:
                found[layer] = found.get(layer, 0.0) + microseconds / total
        return found


def _write_noise(folder: Path, spec: PreprocessSpec) -> None:
    """Noise as a prepared set: a call takes as long whatever the pictures show, and test is none of our business."""
    folder.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (_PICTURES, *spec.size, 3), np.uint8)
    files = {"test.npy": pictures, "test.labels.npy": np.zeros(_PICTURES, np.int64)}
    for name, array in files.items():
        np.save(folder / name, array)
    assert normalize(pictures[:1], spec).shape[1:] == spec.input_shape
    write_json(folder / "preprocess.json", spec.to_json())
    write_json(
        folder / "test.json",
        {
            "schema": 1,
            "name": "test",
            "paths": [f"noise-{index}" for index in range(_PICTURES)],
            "preprocess": spec.to_json(),
            "sha256": {name: sha256(folder / name) for name in files},
        },
    )
