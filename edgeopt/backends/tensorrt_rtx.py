"""TensorRT for RTX: builds real engines ahead of time with no GPU, for the compute capabilities a target names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

from edgeopt.backends import trt_table
from edgeopt.backends.base import Availability, Backend, BuildRequest, BuildResult, Session
from edgeopt.backends.capability import precisions_of, schemes_for
from edgeopt.backends.gpu import compute_capability, gpu_count
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.backends.trt_common import TrtSession, build_engine, check_signed_zero_points, collecting_logger
from edgeopt.config import Target
from edgeopt.errors import BackendError

_INSTALL = 'pip install "edgeopt[tensorrt-rtx]"'
#: What the conformance check builds for: Ampere as in RTX 30. Jetson Orin's own 8.7 has no name in this product.
_CONFORMANCE = ("SM86",)


class TensorRtRtxBackend(Backend):
    """TensorRT for RTX on NVIDIA GPUs from Turing on."""

    name: ClassVar[str] = "tensorrt_rtx"
    extra: ClassVar[str] = "tensorrt-rtx"
    precisions: ClassVar[tuple[str, ...]] = precisions_of("tensorrt_rtx")
    version_bound: ClassVar[bool] = True
    float_rest: ClassVar[str] = "fp16"

    def availability(self) -> Availability:
        """Whether engines run here: needs the module and a GPU."""
        found = self.can_build()
        if found.ok and not gpu_count():
            return Availability(
                False,
                "there is no NVIDIA GPU (or no driver) here",
                "copy the run folder to a PC with an RTX GPU and bench it there",
                found.version,
            )
        return found

    def can_build(self) -> Availability:
        """Whether engines can be built here: the module is enough."""
        try:
            import tensorrt_rtx
        except (ImportError, OSError, RuntimeError) as error:
            return Availability(False, f"tensorrt_rtx cannot be imported ({error})", _INSTALL)
        return Availability(True, version=str(tensorrt_rtx.__version__))

    def schemes(self) -> tuple[str, ...]:
        """From the capability table."""
        return schemes_for(self.name, "nvidia")

    def float_baselines(self) -> tuple[str, ...]:
        """fp32 and fp16; none without a GPU to measure them on."""
        return ("fp32", "fp16") if gpu_count() else ()

    def _build(self, request: BuildRequest) -> BuildResult:
        if request.scheme is not None and request.scheme.name not in self.schemes():
            raise BackendError(
                f"TensorRT-RTX does not run the scheme {request.scheme.name} exactly",
                fix=f"edgeopt compress --int8 --scheme {self.schemes()[0]}",
            )
        model = check_signed_zero_points(request.onnx) if request.scheme is not None else read_onnx(request.onnx)
        here = compute_capability()
        wanted = request.target.session.compute_capabilities or ((here,) if here else ())
        if not wanted:
            raise BackendError(
                "there is no GPU here to build for, and the target names none",
                fix='state session.compute_capabilities in the target, such as ["SM86", "SM89"]',
            )
        serialized, layers, version = _build_with_table(request, wanted)
        engine = request.folder / "engine.rtx"
        engine.write_bytes(serialized)
        shutil.copyfile(request.onnx, request.folder / "model.onnx")
        source = f"layer table in the build log of TensorRT-RTX {version}"
        table = trt_table.to_json(layers, built_with=f"TensorRT-RTX {version}")
        (request.folder / "layers.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        runs_here = here in wanted
        elsewhere = f"it is for {', '.join(wanted)}, and here is {here or 'no GPU'}"
        return BuildResult(
            engine=engine.name,
            files=(engine.name,),
            fusion=trt_table.audit(self.name, layers, model, source),
            reason="" if runs_here else elsewhere,
            device_command="" if runs_here else request.target.build_command,
            runs_here=runs_here,
            details={"compute_capabilities": list(wanted), "layers": "layers.json", "onnx": "model.onnx"},
        )

    def _open(self, engine: Path, target: Target, precision: str, threads: int) -> Session:
        import tensorrt_rtx

        return TrtSession(tensorrt_rtx, engine, "TensorRT-RTX")


def conformance_layers(request: BuildRequest) -> list[trt_table.TrtLayer]:
    """The layer table of a build of ``request`` made only to see that the parser and builder take it."""
    return _build_with_table(request, _CONFORMANCE)[1]


def _build_with_table(
    request: BuildRequest, capabilities: tuple[str, ...]
) -> tuple[bytes, list[trt_table.TrtLayer], str]:
    """The serialized engine, its layers, and the version that built it."""
    import tensorrt_rtx

    trt: Any = tensorrt_rtx
    # The engine cannot be inspected without a GPU; only the log, at its most talkative, tells the layers' types.
    logger = collecting_logger(trt, verbose=True)
    serialized = build_engine(trt, logger, request, product="TensorRT-RTX", capabilities=capabilities)
    return serialized, trt_table.from_log(text for _, text in logger.lines), str(trt.__version__)
