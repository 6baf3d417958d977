"""The two contracts of the device half: a Backend builds and opens engines, a Session answers with logits."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgeopt.backends.embedding import embed_preprocessing
from edgeopt.config import Target
from edgeopt.errors import BackendError, MissingBackendError
from edgeopt.pixels import Float32 as Float32
from edgeopt.pixels import Preprocessing, normalize
from edgeopt.pixels import UInt8 as UInt8
from edgeopt.schemes import Scheme


@dataclass(frozen=True)
class Availability:
    """Whether a backend works here; when not, why, and the exact command that installs it."""

    ok: bool
    reason: str = ""
    install: str = ""
    version: str = ""


@dataclass(frozen=True)
class FusionReport:
    """Which compute layers (convolutions, gemms, matmuls) a built engine runs in int8; ``fusion.json``."""

    backend: str
    compute_layers: int
    int8_layers: int
    float_layers: tuple[str, ...]
    source: str  # how it was read
    int8_share_macs: float | None = None
    float_shares_macs: tuple[float, ...] | None = None  # of ``float_layers``, in their order
    float_by_request: tuple[str, ...] = ()  # those of ``float_layers`` that somebody asked to be

    @property
    def int8_share(self) -> float:
        """int8 layers over all compute layers, 0-1."""
        return self.int8_layers / self.compute_layers if self.compute_layers else 0.0

    def to_json(self) -> dict[str, Any]:
        """As written to ``fusion.json``."""
        return {
            "schema": 1,
            "backend": self.backend,
            "compute_layers": self.compute_layers,
            "int8_layers": self.int8_layers,
            "int8_share": self.int8_share,
            "int8_share_macs": self.int8_share_macs,
            "float_layers": list(self.float_layers),
            "float_shares_macs": None if self.float_shares_macs is None else list(self.float_shares_macs),
            "float_by_request": list(self.float_by_request),
            "source": self.source,
        }


@dataclass(frozen=True)
class LayerTime:
    """Median milliseconds of one executed layer; ``kind`` is its operator, or what the runtime calls its kernel."""

    name: str
    kind: str
    ms: float


@dataclass(frozen=True)
class LayerTimes:
    """What the runtime's own profiler says of every executed layer, slowest first; ``layer_times.json``.

    Of ``runs`` calls with ``batch`` pictures on one thread while building: where the time goes, no benchmark.
    """

    layers: tuple[LayerTime, ...]
    runs: int
    batch: int
    source: str  # how it was read

    def to_json(self) -> dict[str, Any]:
        """As written to ``layer_times.json``."""
        return {"schema": 1, "threads": 1, **asdict(self)}


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build.

    ``onnx`` is float32 for the precisions fp32, bf16 and fp16, and QDQ for int8; ``folder`` exists and is empty of
    engines; ``input_shape`` is (channels, height, width); ``precision`` may differ from the target's (float baselines).
    ``embed`` is the preprocessing whose normalization the engine does itself, None for one that is given its result.
    """

    onnx: Path
    folder: Path
    target: Target
    precision: str
    scheme: Scheme | None
    input_shape: tuple[int, int, int]
    embed: Preprocessing | None = None

    def blank(self, count: int) -> Float32 | UInt8:
        """``count`` pictures of zeros, of the shape and type the engine is given."""
        channels, height, width = self.input_shape
        if self.embed is None:
            return np.zeros((count, channels, height, width), np.float32)
        return np.zeros((count, height, width, channels), np.uint8)


@dataclass(frozen=True)
class BuildResult:
    """What a build left in its folder. ``engine`` is a file name in the folder, or None with the ``reason``."""

    engine: str | None
    files: tuple[str, ...] = ()  # every file the engine consists of, ``engine`` first; its size is their sum
    fusion: FusionReport | None = None
    layer_times: LayerTimes | None = None
    reason: str = ""
    device_command: str = ""  # what to type on the device when there is no engine here
    runs_here: bool = True  # False for an engine of another GPU, built ahead of time
    details: Mapping[str, Any] = field(default_factory=dict)  # goes to build.json


class Session(ABC):
    """An opened engine: float32 (N, 3, height, width) in, float32 logits (N, classes) out. A context manager.

    One with ``embedded_preprocessing`` takes uint8 (N, height, width, 3) instead, and normalizes these itself.
    """

    embedded_preprocessing: bool = False

    @abstractmethod
    def _infer(self, batch: Any) -> Float32: ...

    def infer(self, batch: Float32 | UInt8) -> Float32:
        """Logits (N, classes) of a C-contiguous batch, as :meth:`prepared` gives it; raises BackendError on another."""
        if batch.dtype != (np.uint8 if self.embedded_preprocessing else np.float32) or batch.ndim != 4:
            uint8 = "uint8 (N, height, width, 3)"
            wanted = uint8 if self.embedded_preprocessing else "float32 (N, 3, height, width)"
            raise BackendError(
                f"expected {wanted}, got {batch.dtype} {batch.shape}",
                fix=f"pass what the session's prepared() makes of pictures {uint8}",
            )
        return self._infer(batch)

    def prepared(self, pictures: UInt8, spec: Preprocessing) -> Float32 | UInt8:
        """What :meth:`infer` takes of ``pictures``, uint8 (N, height, width, 3): normalized, or as they are."""
        return np.ascontiguousarray(pictures) if self.embedded_preprocessing else normalize(pictures, spec)

    def close(self) -> None:  # noqa: B027 - most runtimes have nothing to give back
        """Give back what the runtime holds; the session cannot be used afterwards."""

    def device_ms(self) -> float | None:
        """Milliseconds that the last :meth:`infer` kept the device, by its own clock; None where it has none."""
        return None

    def describe(self) -> dict[str, Any]:
        """What really runs: provider or device, threads, precision, version; for the machine record."""
        return {}

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Backend(ABC):
    """A runtime. Public verbs check, private verbs (``_build``, ``_open``) hold what is peculiar to the runtime."""

    name: ClassVar[str]
    extra: ClassVar[str]  # of edgeopt, that installs the runtime
    precisions: ClassVar[tuple[str, ...]]
    native_code: ClassVar[bool] = True  # whether opening an engine may run code that is in it; say False only if sure
    version_bound: ClassVar[bool] = False  # whether only the version of the runtime that built an engine loads it
    embeds_preprocessing: ClassVar[bool] = False  # whether it builds engines that normalize pictures themselves
    float_rest: ClassVar[str] = "fp32"  # precision of what stays float in an int8 engine: which ONNX it is built from

    @abstractmethod
    def availability(self) -> Availability:
        """Whether the runtime can be used here. Imports it, never raises for its absence."""

    @abstractmethod
    def schemes(self) -> tuple[str, ...]:
        """Schemes this runtime runs exactly and fuses on this machine, best first, from the capability table."""

    @abstractmethod
    def _build(self, request: BuildRequest) -> BuildResult: ...

    @abstractmethod
    def _open(self, engine: Path, target: Target, precision: str, threads: int) -> Session: ...

    def can_build(self) -> Availability:
        """Whether :meth:`build` can be called here. Differs from :meth:`availability` where building needs less."""
        return self.availability()

    def session_settings(self, engine: Path, target: Target, precision: str) -> dict[str, Any] | None:
        """What a package's ``predict.py`` opens ``engine`` with, JSON-able; None where engines are not packaged."""
        return None

    def extra_for(self, target: Target) -> str:
        """As ``extra``, for what ``target`` states; differs where a runtime's devices come in packages of their own."""
        return self.extra

    def schemes_on(self, target: Target) -> tuple[str, ...]:
        """As :meth:`schemes`, on the device that ``target`` states; differs where a runtime has several."""
        return self.schemes()

    def float_rest_on(self, target: Target) -> str:
        """Precision of what stays float in an int8 engine for ``target``: by which its answers are judged."""
        return self.float_rest

    def missing(self, target: Target) -> str:
        """What ``target`` needs of an installed runtime that is not here, such as a device; empty when all is."""
        return ""

    def rewritten(self, onnx: Path, folder: Path, target: Target, precision: str) -> Path:
        """What an engine is made of: ``onnx``, or a file in ``folder`` made of it, whose tensors keep their names."""
        return onnx

    def tap(
        self, exposed: Path, onnx: Path, tensor: str, target: Target, precision: str, pictures: Float32
    ) -> npt.NDArray[Any] | None:
        """``tensor`` as an engine of ``onnx`` computes it; ``exposed`` is :meth:`rewritten`, with it as an output.

        None where the runtime cannot be asked (:mod:`edgeopt.backends.bisection`).
        """
        return None

    def require(self, *, to_build: bool = False) -> Availability:
        """That it runs (``to_build``: builds) here; raises MissingBackendError with what to install."""
        found = self.can_build() if to_build else self.availability()
        if not found.ok:
            doing = "build" if to_build else "run"
            raise MissingBackendError(f"{self.name} cannot {doing} here: {found.reason}", fix=found.install)
        return found

    def require_embedding(self) -> None:
        """That its engines can normalize pictures themselves; raises BackendError otherwise."""
        if not self.embeds_preprocessing:
            raise BackendError(
                f"{self.name} builds no engines with their preprocessing embedded",
                fix="leave --embed-preprocessing out; engines of onnxruntime and openvino can have it",
            )

    def float_baselines(self) -> tuple[str, ...]:
        """Precisions, other than int8, worth measuring beside int8 on this machine."""
        return ("fp32",)

    def baselines_on(self, target: Target) -> tuple[str, ...]:
        """As :meth:`float_baselines`, on the device that ``target`` states; differs where a runtime has several."""
        return self.float_baselines()

    def layer_times(
        self, engine: Path, target: Target, *, precision: str, threads: int, batch: Float32
    ) -> dict[str, float]:
        """Microseconds of each node that one call executed, by the runtime's own profiler: medians over several calls.

        Nodes are called as in the ONNX; one that several were fused into bears the names of all, joined by commas.
        Profiling slows a call down, so that only the shares count. Empty where the runtime has no profiler.
        """
        return {}

    def build(self, request: BuildRequest) -> BuildResult:
        """Build ``request`` into its folder and audit it; raises BackendError when the runtime refuses the model."""
        self.require(to_build=True)
        if request.precision not in self.precisions:
            raise BackendError(
                f"{self.name} has no precision {request.precision}", fix=f"use one of {', '.join(self.precisions)}"
            )
        if (request.precision == "int8") != (request.scheme is not None):
            raise BackendError(
                "an int8 build needs a scheme, and only an int8 build has one",
                fix='give BuildRequest a scheme where precision is "int8", and scheme=None elsewhere',
            )
        if request.embed is None:
            return self._build(request)
        self.require_embedding()
        with tempfile.TemporaryDirectory(prefix="edgeopt-embedding-") as folder:
            embedded = Path(folder) / request.onnx.name
            embed_preprocessing(request.onnx, embedded, request.embed)
            return self._build(replace(request, onnx=embedded))

    def open(self, engine: Path, target: Target, *, precision: str, threads: int = 0) -> Session:
        """Open ``engine`` for ``target``; ``threads`` 0 takes the target's, which when 0 takes every core.

        More threads than this process has cores are cut to them; ``describe()`` says how many run.
        """
        self.require()
        if not engine.is_file():
            raise BackendError(
                f"engine {engine} does not exist", fix="build it again: edgeopt build --target TARGET --force"
            )
        return self._open(engine, target, precision, threads or target.session.threads)
