"""TensorRT 10.3 to 11: builds and runs engines on the GPU that is here; without one, checks the ONNX for the device."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from edgeopt import environment
from edgeopt.backends import tensorrt_rtx, trt_table
from edgeopt.backends.base import Availability, Backend, BuildRequest, BuildResult, Session
from edgeopt.backends.capability import precisions_of, schemes_for
from edgeopt.backends.gpu import gpu_count
from edgeopt.backends.onnx_reader import OnnxModel, read_onnx
from edgeopt.backends.trt_common import (
    TrtSession,
    build_engine,
    check_signed_zero_points,
    collecting_logger,
    concerns_types,
)
from edgeopt.config import Target
from edgeopt.errors import BackendError

_INSTALL = 'pip install "edgeopt[tensorrt]"'
#: Where NVIDIA's own packages put TensorRT's Python module on a Jetson; pip has none for its driver.
SYSTEM_TENSORRT = ("/usr/lib/python3/dist-packages", f"/usr/lib/python3.{sys.version_info.minor}/dist-packages")
_OLDEST = 10  # strongly typed networks, and every call that is made here


class TensorRtBackend(Backend):
    """TensorRT on NVIDIA GPUs, Jetson included."""

    name: ClassVar[str] = "tensorrt"
    extra: ClassVar[str] = "tensorrt"
    precisions: ClassVar[tuple[str, ...]] = precisions_of("tensorrt")
    version_bound: ClassVar[bool] = True
    float_rest: ClassVar[str] = "fp16"

    def availability(self) -> Availability:
        """Not ok without a GPU, or without the module."""
        if not gpu_count():
            return Availability(False, "there is no NVIDIA GPU (or no driver) here", f"on the device: {_INSTALL}")
        try:
            import tensorrt
        except (ImportError, OSError, RuntimeError) as error:  # its stub package raises RuntimeError
            return Availability(False, *(hidden_tensorrt() or (f"tensorrt cannot be imported ({error})", _INSTALL)))
        if not hasattr(tensorrt, "Builder"):
            return Availability(False, "the tensorrt package is only a stub", _INSTALL)
        version = str(tensorrt.__version__)
        if int(version.split(".", maxsplit=1)[0]) < _OLDEST:
            return Availability(
                False, f"TensorRT {version} is older than {_OLDEST}.0", f"{_INSTALL} --upgrade", version
            )
        return Availability(True, version=version)

    def can_build(self) -> Availability:
        """Ok without a GPU as well: then the build checks the ONNX and says what to type on the device."""
        return self.availability() if gpu_count() else Availability(True)

    def schemes(self) -> tuple[str, ...]:
        """From the capability table."""
        return schemes_for(self.name, "nvidia")

    def float_baselines(self) -> tuple[str, ...]:
        """fp32 and fp16; none without a GPU to measure them on."""
        return ("fp32", "fp16") if gpu_count() else ()

    def _build(self, request: BuildRequest) -> BuildResult:
        if request.scheme is not None:
            _require_scheme(request, self.schemes())
        model = check_signed_zero_points(request.onnx) if request.scheme is not None else read_onnx(request.onnx)
        # The ONNX stays beside the engine, which fits one version, system and GPU only.
        onnx = request.folder / "model.onnx"
        shutil.copyfile(request.onnx, onnx)
        return self._build_here(request, model) if gpu_count() else _check_only(request, model)

    def _build_here(self, request: BuildRequest, model: OnnxModel) -> BuildResult:
        import tensorrt

        logger = collecting_logger(tensorrt)
        serialized = build_engine(tensorrt, logger, request, timing_cache=_timing_cache(str(tensorrt.__version__)))
        engine = request.folder / "engine.plan"
        engine.write_bytes(serialized)
        with closing(TrtSession(tensorrt, engine, "TensorRT")) as session:
            layers = trt_table.from_inspector(session.inspect())
        fusion = trt_table.audit(self.name, layers, model, f"engine inspector of TensorRT {tensorrt.__version__}")
        _write_layers(request.folder, layers, checked_with=None)
        return BuildResult(
            engine=engine.name,
            files=(engine.name,),
            fusion=fusion,
            details={"layers": "layers.json", "onnx": "model.onnx", "max_batch": request.target.batch},
        )

    def _open(self, engine: Path, target: Target, precision: str, threads: int) -> Session:
        import tensorrt

        return TrtSession(tensorrt, engine, "TensorRT")


def hidden_tensorrt() -> tuple[str, str] | None:
    """Where a Jetson's own TensorRT is when this Python does not see it, in words, and the command for it to see it.

    What pip would install is for other drivers.
    """
    if "jetson" not in environment.board().lower() or importlib.util.find_spec("tensorrt") is not None:
        return None
    where = next((folder for folder in SYSTEM_TENSORRT if (Path(folder) / "tensorrt").is_dir()), None)
    if where is None:
        return None
    command = f"{sys.executable} -m venv --system-site-packages {sys.prefix}"
    return f"TensorRT is in {where}, which this environment does not see", command


def _require_scheme(request: BuildRequest, schemes: tuple[str, ...]) -> None:
    if request.scheme is not None and request.scheme.name not in schemes:
        raise BackendError(
            f"TensorRT does not run the scheme {request.scheme.name} exactly",
            fix=f"edgeopt compress --int8 --scheme {schemes[0]}",
        )


def _check_only(request: BuildRequest, model: OnnxModel) -> BuildResult:
    """No GPU: TensorRT-RTX, where installed, parses and builds the file as a check; its engine is dropped."""
    here = "there is no NVIDIA GPU on this machine"
    command = request.target.build_command
    found = tensorrt_rtx.TensorRtRtxBackend().can_build()
    if not found.ok:
        return BuildResult(
            engine=None,
            reason=f"{here}; model.onnx is checked only for its zero points ({found.reason}; {found.install})",
            device_command=command,
            details={"checked_with": None, "onnx": "model.onnx"},
        )
    product = f"TensorRT-RTX {found.version}"
    try:
        layers = tensorrt_rtx.conformance_layers(request)
    except BackendError as error:
        if concerns_types(error):
            raise
        # Of another product: a doubt, which the device decides.
        return BuildResult(
            engine=None,
            reason=f"{here}; {product}, which stands in for TensorRT, does not take model.onnx: {error.message}",
            device_command=command,
            details={"checked_with": product, "doubt": error.message, "onnx": "model.onnx"},
        )
    _write_layers(request.folder, layers, checked_with=product)
    # The report names the product it was read from: it is not TensorRT's own.
    fusion = trt_table.audit(
        "tensorrt_rtx", layers, model, f"conformance check: build log of {product}, not TensorRT's"
    )
    return BuildResult(
        engine=None,
        fusion=fusion,
        reason=f"{here}; model.onnx passed the parser and builder of {product}",
        device_command=command,
        details={"checked_with": product, "layers": "layers.json", "onnx": "model.onnx"},
    )


def _write_layers(folder: Path, layers: list[trt_table.TrtLayer], *, checked_with: str | None) -> None:
    table: dict[str, Any] = trt_table.to_json(layers, checked_with=checked_with)
    (folder / "layers.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _timing_cache(version: str) -> Path:
    """Kernel timings are this machine's, so they live in the user's cache and never in a run folder that travels."""
    return environment.cache_folder() / f"tensorrt-{version}-{environment.machine_id()}.timing"
