"""What the files of ``targets/`` and ``calibration/`` hold: a device with its budget, a choice of pictures."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from edgeopt.compress_table import known_scheme
from edgeopt.files import fits_a_command
from edgeopt.tables import Strict
from edgeopt.training_tables import Seed

#: What speed is compared with.
Baseline = Literal["original", "compiled", "float"]


class Budget(Strict):
    """What the result must satisfy. Points are percentage points, times milliseconds, sizes MiB.

    ``min_speedup`` is by baseline: ``original``, the PyTorch model as it is, ``compiled``, the same through
    torch.compile, or ``float``, the fastest other precision of the same target; a number alone is against the original.
    ``allow_undecided`` lets pass what too few pictures or too little time cannot tell; it is still said.
    """

    max_drop_points: float | None = Field(None, ge=0)
    max_class_drop_points: float | None = Field(None, ge=0)
    min_class_recall: float | None = Field(None, gt=0, le=1)
    min_top1: float | None = Field(None, gt=0, le=1)
    min_speedup: dict[Baseline, Annotated[float, Field(gt=0)]] | None = None
    max_p50_ms: float | None = Field(None, gt=0)
    max_p99_ms: float | None = Field(None, gt=0)
    min_throughput_ips: float | None = Field(None, gt=0)
    max_size_mib: float | None = Field(None, gt=0)
    max_memory_mib: float | None = Field(None, gt=0)
    min_int8_share: float | None = Field(None, ge=0, le=1)
    allow_undecided: bool = False

    @field_validator("min_speedup", mode="before")
    @classmethod
    def _against_the_original(cls, value: Any) -> Any:
        return {"original": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    def lines(self) -> dict[str, float]:
        """Limit by line, those that are stated: ``min_speedup`` against the original, ``min_speedup.float``."""
        found: dict[str, float] = {}
        for name, limit in self.model_dump(exclude_none=True, exclude={"allow_undecided"}).items():
            for baseline, one in (limit if isinstance(limit, dict) else {"original": limit}).items():
                found[name if baseline == "original" else f"{name}.{baseline}"] = float(one)
        return found

    def merged(self, other: Budget) -> Budget:
        """This budget with every line that ``other`` states taken from ``other``."""
        mine, theirs = (one.model_dump(exclude_none=True, exclude_defaults=True) for one in (self, other))
        speedups = {**mine.get("min_speedup", {}), **theirs.get("min_speedup", {})}
        return Budget.model_validate({**mine, **theirs, **({"min_speedup": speedups} if speedups else {})})


class Match(Strict):
    """How a target recognizes its device. Every stated field must fit; an empty match fits every machine."""

    machine: str | None = None  # platform.machine(): x86_64, aarch64
    board: str | None = None  # substring of the device-tree model
    cpu: str | None = None  # substring of the CPU's model name
    gpu: str | None = None  # substring of a GPU's name, or "nvidia" for any


class SessionOptions(Strict):
    """How an engine is opened. ``threads`` 0 means every core this process may use."""

    threads: int = Field(0, ge=0, le=1024)
    device: str = "CPU"  # OpenVINO: CPU, GPU, NPU, AUTO
    hint: Literal["latency", "throughput"] = "latency"  # OpenVINO; throughput: several requests at once
    streams: int = Field(0, ge=0, le=1024)  # OpenVINO: requests computed at once; 0: what the hint makes of it
    pinning: bool | None = None  # OpenVINO: threads stay on their cores; None: its own choice
    cache: bool = False  # OpenVINO: compiled models are kept in the user's cache folder, for a faster start
    provider: str = "CPUExecutionProvider"  # ONNX Runtime
    spinning: bool = True  # ONNX Runtime: idle threads wait actively, which is faster and takes a core each
    optimized: bool = False  # ONNX Runtime: the graph is optimized when built and not when loaded
    compile: bool = False  # PyTorch: torch.compile
    compute_capabilities: tuple[str, ...] = ()  # TensorRT-RTX, such as "SM86"; empty: the GPU of this machine


#: What only one backend understands; a backend that a package adds may read any.
_SESSION_OF = {
    "onnxruntime": {"provider", "spinning", "optimized"},
    "openvino": {"device", "hint", "streams", "pinning", "cache"},
    "tensorrt": {"compute_capabilities"},
    "tensorrt_rtx": {"compute_capabilities"},
}


class Target(Strict):
    """A device profile. ``name`` comes from the file's name."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str = ""
    typed: str = ""  # the path of a file of one's own, as it was given
    title: str
    backend: str
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "int8"
    scheme: str | None = None  # None: what the capability table prefers on the machine that builds
    status: Literal["measured", "emulated", "untested"] = "untested"
    round_to: int = Field(8, ge=1, le=128)
    batch: int = Field(1, ge=1, le=1024)
    min_int8_share_macs: float = Field(1.0, ge=0, le=1)  # of an int8 engine, for `build --strict`
    match: Match = Match()
    session: SessionOptions = SessionOptions()
    budget: Budget = Budget()
    sources: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _session_of_the_backend(self) -> Target:
        """A key that the backend does not read would be decoration."""
        own = _SESSION_OF.get(self.backend)
        strange = sorted(self.session.model_fields_set - {"threads"} - own) if own is not None else []
        default = SessionOptions()
        strange = [name for name in strange if getattr(self.session, name) != getattr(default, name)]
        if strange:
            raise ValueError(f"session.{', session.'.join(strange)}: not read by {self.backend}")
        return self

    @property
    def build_command(self) -> str:
        """What to type to build for it."""
        return f"edgeopt build --target {shlex.quote(self.typed or self.name or self.backend)}"

    @field_validator("typed")
    @classmethod
    def _to_be_typed(cls, value: str) -> str:
        if value and not fits_a_command(value):
            raise ValueError("is no path to type")
        return value

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        return value if value is None else known_scheme(value)


class CalibrationRecipe(Strict):
    """How the pictures that set the int8 ranges are chosen from train."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str = ""
    count: int = Field(300, ge=16, le=100_000)
    selection: Literal["stratified", "diverse"] = "stratified"
    range: Literal["minmax", "percentile", "histogram"] = "minmax"
    seed: Seed = 0
