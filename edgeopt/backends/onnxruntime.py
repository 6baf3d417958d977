"""ONNX Runtime: builds keep the ONNX and audit the graph the runtime really executes; sessions answer through it."""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from edgeopt import allotment
from edgeopt.backends.base import Availability, Backend, BuildRequest, BuildResult, Float32, Session
from edgeopt.backends.capability import precisions_of, processor, schemes_for
from edgeopt.backends.onnx_reader import FLOAT16, read_onnx
from edgeopt.backends.onnxruntime_audit import executed, times
from edgeopt.backends.onnxruntime_gates import quantize_gates
from edgeopt.backends.onnxruntime_session import (
    CPU,
    CUDA,
    NVIDIA,
    TENSORRT,
    UNASKED,
    OnnxRuntimeSession,
    exact,
    exact_anywhere,
    load,
    providers,
    run_one,
)
from edgeopt.config import Target
from edgeopt.errors import BackendError

_INSTALL = 'pip install "edgeopt[onnxruntime]"'


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on CPUs, and on NVIDIA GPUs through ``session.provider``."""

    name: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnxruntime"
    native_code: ClassVar[bool] = False  # an ONNX file; external data is refused, custom operators are not loaded
    precisions: ClassVar[tuple[str, ...]] = precisions_of("onnxruntime")
    embeds_preprocessing: ClassVar[bool] = True

    def availability(self) -> Availability:
        """Not ok when the module is missing, broken, or both of its packages are installed over each other."""
        both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
        if len(both) == 2:
            return Availability(
                False,
                "onnxruntime and onnxruntime-gpu are both installed; they unpack into one folder and break each other",
                "pip uninstall -y onnxruntime onnxruntime-gpu && " + _INSTALL,
            )
        try:
            import onnxruntime
        except ImportError as error:
            return Availability(False, f"onnxruntime cannot be imported ({error})", _INSTALL)
        if not hasattr(onnxruntime, "InferenceSession"):
            return Availability(
                False, "the onnxruntime folder is incomplete (half uninstalled?)", f"{_INSTALL} --force-reinstall"
            )
        return Availability(True, version=str(onnxruntime.__version__))

    def schemes(self) -> tuple[str, ...]:
        """From the capability table, for this CPU."""
        return schemes_for(self.name, processor())

    def schemes_on(self, target: Target) -> tuple[str, ...]:
        """From the capability table, for the provider that ``target`` states."""
        kind = {CUDA: "nvidia-cuda", TENSORRT: "nvidia"}.get(target.session.provider, processor())
        return schemes_for(self.name, kind)

    def baselines_on(self, target: Target) -> tuple[str, ...]:
        """fp32, and on an NVIDIA GPU fp16."""
        return ("fp32", "fp16") if target.session.provider in NVIDIA else self.float_baselines()

    def float_rest_on(self, target: Target) -> str:
        """fp16 in TensorRT's engines, else fp32."""
        return "fp16" if target.session.provider == TENSORRT else "fp32"

    def missing(self, target: Target) -> str:
        """The execution provider, when this ONNX Runtime was built without it."""
        import onnxruntime

        wanted, present = target.session.provider, onnxruntime.get_available_providers()
        return "" if wanted in present else f"this ONNX Runtime has no {wanted}, only {', '.join(present)}"

    def session_settings(self, engine: Path, target: Target, precision: str) -> dict[str, Any]:
        """Provider, threads, and the entries of a session's configuration, for any machine of the target's kind."""
        provider = target.session.provider
        return {
            "provider": provider,
            # Without folders of this machine.
            "providers": [
                [name, {key: value for key, value in options.items() if "cache" not in key}]
                for name, options in providers(provider, engine)
            ],
            "threads": target.session.threads,
            "entries": {**exact_anywhere(engine), **_spinning(target)},
            "disabled_optimizers": [*UNASKED],
        }

    def extra_for(self, target: Target) -> str:
        """``gpu`` brings NVIDIA's providers, in a package of its own."""
        return "gpu" if target.session.provider in NVIDIA else self.extra

    def rewritten(self, onnx: Path, folder: Path, target: Target, precision: str) -> Path:
        """With int8 gates, where it is for int8 on the CPU."""
        if precision != "int8" or target.session.provider != CPU:
            return onnx
        gated = folder / "gated.onnx"
        quantize_gates(onnx, gated)
        return gated

    def tap(
        self, exposed: Path, onnx: Path, tensor: str, target: Target, precision: str, pictures: Float32
    ) -> npt.NDArray[Any]:
        """From the graph, fused as the engine's is."""
        return run_one(exposed, target.session.provider, tensor, pictures, exact(onnx))

    def _build(self, request: BuildRequest) -> BuildResult:
        model = read_onnx(request.onnx)  # refuses external data
        if request.precision == "fp16" and not any(one.dtype == FLOAT16 for one in model.initializers.values()):
            raise BackendError(
                f"{request.onnx.name} has no float16 weights",
                fix="edgeopt export --force writes such a file",
            )
        # The ONNX stays the engine: ONNX Runtime's optimized file is tied to this CPU and version, and loading is not
        # what is timed.
        engine = request.folder / "engine.onnx"
        provider = request.target.session.provider
        with tempfile.TemporaryDirectory(dir=request.folder) as folder:
            source = self.rewritten(request.onnx, Path(folder), request.target, request.precision)
            if request.target.session.optimized:
                _optimize(source, engine, provider)
            else:
                shutil.copyfile(source, engine)
        found = executed(engine, provider, request.blank(1))
        on_cpu = f"{len(found.on_cpu)} compute layers run on the CPU, for {provider} does not take them: "
        return BuildResult(
            engine=engine.name,
            fusion=found.fusion,
            reason=on_cpu + ", ".join(found.on_cpu[:3]) if found.on_cpu else "",
            layer_times=times(engine, provider, 1, request.blank(request.target.batch)),
            files=(engine.name,),
            details={"provider": provider, "on_cpu": list(found.on_cpu)},
        )

    def layer_times(
        self, engine: Path, target: Target, *, precision: str, threads: int, batch: Float32
    ) -> dict[str, float]:
        """By the kernel times in ONNX Runtime's profile."""
        cores = allotment.usable_cores()
        threads = min(threads or target.session.threads or cores, cores)
        found = times(engine, target.session.provider, threads, batch)
        return {layer.name: 1000 * layer.ms for layer in found.layers}

    def _open(self, engine: Path, target: Target, precision: str, threads: int) -> Session:
        cores = allotment.usable_cores()
        threads = min(threads or cores, cores)  # more than the cores only wait for each other
        entries = {**exact(engine), **_spinning(target)}
        return OnnxRuntimeSession(load(engine, target.session.provider, threads, entries), threads, options=entries)


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _spinning(target: Target) -> dict[str, str]:
    """Spinning is the runtime's default; without it, idle threads leave their cores to others."""
    return {} if target.session.spinning else {"session.intra_op.allow_spinning": "0"}


def _optimize(source: Path, engine: Path, provider: str) -> None:
    """Write the graph as ONNX Runtime fuses it; what depends on the very CPU it still does when loading."""
    import onnxruntime

    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    load(source, provider, 1, {"optimized_model_filepath": str(engine), "graph_optimization_level": level})
