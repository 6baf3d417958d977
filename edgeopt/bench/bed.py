"""Where engines that are no variants are built, timed against each other and profiled: one target, one folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgeopt.backends.audit import layer_of
from edgeopt.backends.base import Backend, BuildRequest
from edgeopt.bench.protocol import STARTS, bench
from edgeopt.bench.result import BenchResult, bounds
from edgeopt.bench.spec import EngineSpec
from edgeopt.config import Target
from edgeopt.console import Console, NotedProgress
from edgeopt.errors import BackendError
from edgeopt.files import sha256, write_json
from edgeopt.metrics import Interval
from edgeopt.preprocess import PreprocessSpec, normalize
from edgeopt.registry import load_backend
from edgeopt.schemes import Scheme, get_scheme

#: The engine that latencies are shares of.
UNPRUNED = "unpruned"
_PICTURES = 8
#: Of the seconds for timing dozens of engines: what a verdict on two or three takes.
VERDICT_PART = 3
_VERDICT_SECONDS = 20.0  # at least
_VERDICT_WIDTH = 0.002  # narrower than what a verdict may need


@dataclass(frozen=True)
class Share:
    """A measured latency over the unpruned engine's, with its 95 % interval, NaN where there were too few windows."""

    NAMES: ClassVar[tuple[str, ...]] = ("p50_ms", "share_of_unpruned", "share_of_unpruned_ci")  # in a record

    value: float
    low: float
    high: float
    p50_ms: float

    @classmethod
    def of(cls, result: BenchResult, name: str) -> Share:
        """From interleaved windows; raises BackendError where one of the two could not be timed."""
        p50_ms = result.measured(name).p50.value
        if name == UNPRUNED:
            return cls(1.0, 1.0, 1.0, p50_ms)
        ratio = result.ratio(name, UNPRUNED)
        return cls(1 / ratio.value, 1 / ratio.high, 1 / ratio.low, p50_ms)

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        interval = bounds(Interval(self.value, self.low, self.high))
        return dict(zip(self.NAMES, (self.p50_ms, self.value, interval), strict=True))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Share:
        """What :meth:`to_json` wrote."""
        low, high = record["share_of_unpruned_ci"] or (nan, nan)
        return cls(record["share_of_unpruned"], low, high, record["p50_ms"])


@dataclass(frozen=True)
class Timing:
    """An engine's latency, and the share (0-1) of a profiled call that each layer takes, empty where not profiled."""

    share: Share
    layers: Mapping[str, float]


@dataclass(frozen=True)
class Bed:
    """Builds and measures int8 engines of one target. ``spec`` says how large pictures are unless stated otherwise."""

    backend: Backend
    target: Target
    scheme: Scheme
    spec: PreprocessSpec
    folder: Path
    _disturbed: list[float] = field(default_factory=list)  # cores that others kept busy, of measurements not quiet

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
        self,
        engines: Sequence[EngineSpec],
        seconds: float,
        *,
        width: float,
        starts: int = STARTS,
        progress: NotedProgress | None = None,
    ) -> BenchResult:
        """All of them, interleaved. Stops before ``seconds`` once their ratios to the first are known to ``width``."""
        assert engines[0].pictures is not None
        assert engines[0].preprocess is not None
        result = bench(
            engines,
            pictures=engines[0].pictures,
            preprocess=engines[0].preprocess,
            seconds=seconds,
            width=width,
            starts=starts,
            threads=self.target.session.threads,
            progress=progress,
        )
        self._disturbed.extend(one.other_load_cores or 0.0 for one in result.engines.values() if not one.quiet)
        return result

    @property
    def disturbance(self) -> str | None:
        """What to tell of the machine's other work while engines were timed; None where it was quiet."""
        if not self._disturbed:
            return None
        return (
            f"the machine was busy with other work (up to {max(self._disturbed):.1f} cores) while engines were timed: "
            "on a quiet one another share of the latency may remain"
        )

    def judge(
        self, engines: Sequence[EngineSpec], seconds: float, *, progress: NotedProgress | None = None
    ) -> BenchResult:
        """As :meth:`measure`, as long as a verdict on a latency takes where dozens are timed for ``seconds``."""
        return self.measure(engines, verdict_seconds(seconds), width=_VERDICT_WIDTH, progress=progress)

    def timings(
        self,
        engines: Mapping[str, EngineSpec],
        seconds: float,
        *,
        layers: Iterable[str],
        profiled: Iterable[str],
        progress: NotedProgress | None = None,
    ) -> dict[str, Timing]:
        """Of all, interleaved, against the one called ``UNPRUNED``, and of the layers of those in ``profiled``."""
        # Dozens, of which some thousandths of a second decide nothing: plans near the limit are measured again.
        result = self.measure(list(engines.values()), seconds, width=0.01, starts=1, progress=progress)
        some, names = set(profiled), list(layers)
        return {
            name: Timing(Share.of(result, name), self.layer_times(engine, names) if name in some else {})
            for name, engine in engines.items()
        }

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


@contextmanager
def temporary_bed(target: Target, scheme: str, spec: PreprocessSpec, console: Console) -> Iterator[Bed]:
    """A place to build in that is gone afterwards; that other work disturbed it is said then, once."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-latency-") as folder:
        bed = Bed(load_backend(target.backend), target, get_scheme(scheme), spec, Path(folder))
        yield bed
        if bed.disturbance:
            console.say(bed.disturbance)


def verdict_seconds(seconds: float) -> float:
    """How long engines are measured for a verdict where dozens are timed for ``seconds``."""
    return max(_VERDICT_SECONDS, seconds / VERDICT_PART)


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
