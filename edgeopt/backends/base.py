"""The two contracts of the device half: a Backend builds and opens engines, a Session answers with logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgeopt.config import Target
from edgeopt.errors import BackendError, MissingBackendError
from edgeopt.schemes import Scheme

Float32 = npt.NDArray[np.float32]

#: Calls that a layer's time is the median of.
PROFILED_CALLS = 30


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
            "source": self.source,
        }


@dataclass(frozen=True)
class BuildRequest:
    """One engine to build.

    ``onnx`` is float32 for the precisions fp32, bf16 and fp16, and QDQ for int8; ``folder`` exists and is empty of
    engines; ``input_shape`` is (channels, height, width); ``precision`` may differ from the target's (float baselines).
    """

    onnx: Path
    folder: Path
    target: Target
    precision: str
    scheme: Scheme | None
    input_shape: tuple[int, int, int]


@dataclass(frozen=True)
class BuildResult:
    """What a build left in its folder. ``engine`` is a file name in the folder, or None with the ``reason``."""

    engine: str | None
    files: tuple[str, ...] = ()  # every file the engine consists of, ``engine`` first; its size is their sum
    fusion: FusionReport | None = None
    reason: str = ""
    device_command: str = ""  # what to type on the device when there is no engine here
    runs_here: bool = True  # False for an engine of another GPU, built ahead of time
    details: Mapping[str, Any] = field(default_factory=dict)  # goes to build.json


class Session(ABC):
    """An opened engine: float32 (N, 3, height, width) in, float32 logits (N, classes) out. A context manager."""

    @abstractmethod
    def _infer(self, batch: Float32) -> Float32: ...

    def infer(self, batch: Float32) -> Float32:
        """Logits (N, classes) of a C-contiguous float32 batch (N, 3, height, width); raises BackendError on another."""
        if batch.dtype != np.float32 or batch.ndim != 4:
            raise BackendError(
                f"expected float32 (N, 3, height, width), got {batch.dtype} {batch.shape}",
                fix="pass the array that edgeopt.preprocess.normalize makes of uint8 pictures (N, height, width, 3)",
            )
        return self._infer(batch)

    def close(self) -> None:  # noqa: B027 - most runtimes have nothing to give back
        """Give back what the runtime holds; the session cannot be used afterwards."""

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

    def require(self, *, to_build: bool = False) -> Availability:
        """That it runs (``to_build``: builds) here; raises MissingBackendError with what to install."""
        found = self.can_build() if to_build else self.availability()
        if not found.ok:
            doing = "build" if to_build else "run"
            raise MissingBackendError(f"{self.name} cannot {doing} here: {found.reason}", fix=found.install)
        return found

    def float_baselines(self) -> tuple[str, ...]:
        """Precisions, other than int8, worth measuring beside int8 on this machine."""
        return ("fp32",)

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
        return self._build(request)

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
