"""OpenVINO: which devices and precisions there are; builds write its IR and audit the graph the plugin compiled."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgeopt import allotment, environment
from edgeopt.backends.base import Availability, Backend, BuildRequest, BuildResult, Float32
from edgeopt.backends.capability import precisions_of, processor, schemes_for
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.backends.openvino_passes import prepare
from edgeopt.backends.openvino_session import FIXED_SHAPES, UPGRADE, OpenVinoSession, core, family, refused
from edgeopt.config import Target
from edgeopt.errors import BackendError
from edgeopt.files import make_folder

_INSTALL = 'pip install "edgeopt[openvino]"'
#: What the plugin computes in where the graph does not say int8. OpenVINO's own default is bf16 where the CPU has it,
#: so float32 must be asked for.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
#: Devices on which the layers that int8 leaves over are float16: the GPU's float32 is half as fast, and the NPU has
#: none (up to 2025 its plugin refuses to be asked for it).
_HALF_REST = frozenset({"GPU", "NPU"})
_NEEDS = {"bf16": "BF16", "fp16": "FP16"}  # precision -> name in the device's OPTIMIZATION_CAPABILITIES


class OpenVinoBackend(Backend):
    """OpenVINO on Intel, AMD and ARM CPUs, and on Intel GPUs and NPUs through ``session.device``."""

    name: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    native_code: ClassVar[bool] = False  # a graph in XML and its weights
    precisions: ClassVar[tuple[str, ...]] = precisions_of("openvino")
    embeds_preprocessing: ClassVar[bool] = True

    def availability(self) -> Availability:
        """Not ok when the module is missing or finds no device."""
        try:
            import openvino
        except ImportError as error:
            return Availability(False, f"openvino cannot be imported ({error})", _INSTALL)
        if not core().available_devices:
            return Availability(False, "OpenVINO finds no device it can run on", f"{_INSTALL} --force-reinstall")
        return Availability(True, version=str(openvino.__version__).split("-", maxsplit=1)[0])

    def schemes(self) -> tuple[str, ...]:
        """From the capability table, for this CPU."""
        return schemes_for(self.name, processor())

    def float_baselines(self) -> tuple[str, ...]:
        """fp32, and bf16 or fp16 where the CPU computes in them natively."""
        return _computed_in(_capabilities("CPU"))

    def baselines_on(self, target: Target) -> tuple[str, ...]:
        """Those that the device of ``target`` computes in natively; fp32 where it is not here to be asked."""
        return _computed_in(_capabilities(target.session.device))

    def schemes_on(self, target: Target) -> tuple[str, ...]:
        """From the capability table, for the device that ``target`` states."""
        kind = {"GPU": "intel-gpu", "NPU": "intel-npu"}.get(family(target.session.device), processor())
        return schemes_for(self.name, kind)

    def float_rest_on(self, target: Target) -> str:
        """fp16 on the GPU and the NPU, fp32 on a CPU."""
        return "fp16" if family(target.session.device) in _HALF_REST else "fp32"

    def missing(self, target: Target) -> str:
        """The device, when OpenVINO does not find it."""
        known = core().available_devices
        found = family(target.session.device) in {family(name) for name in known} | {"AUTO"}
        return "" if found else f"OpenVINO has no device {target.session.device} here, only {', '.join(known)}"

    def session_settings(self, engine: Path, target: Target, precision: str) -> dict[str, Any]:
        """Device, threads, and the properties a model is compiled with."""
        options = target.session
        return {"device": options.device, "threads": options.threads, "properties": _properties(precision, target)}

    def tap(
        self, exposed: Path, onnx: Path, tensor: str, target: Target, precision: str, pictures: Float32
    ) -> npt.NDArray[Any]:
        """From the model, compiled as the engine is."""
        try:
            model = core().read_model(str(exposed))
            prepare(model)
            if family(target.session.device) in FIXED_SHAPES:
                model.reshape([len(pictures), *pictures.shape[1:]])
            compiled = core().compile_model(model, target.session.device, _properties(precision, target))
            request = compiled.create_infer_request()
            request.infer({0: pictures})
            return np.array(request.get_tensor(tensor).data)
        except Exception as error:
            raise refused(f"asking for {tensor}", error, UPGRADE) from error

    def _build(self, request: BuildRequest) -> BuildResult:
        import openvino

        read_onnx(request.onnx)  # refuses external data
        if missing := self.missing(request.target):
            on_device = request.target.build_command
            return BuildResult(engine=None, reason=missing, device_command=on_device, runs_here=False)
        try:
            model = core().read_model(str(request.onnx))
            prepare(model)
            # Half-precision storage is OpenVINO's default, and would change a float32 baseline.
            openvino.save_model(model, str(request.folder / "engine.xml"), compress_to_fp16=False)
        except Exception as error:
            raise refused(f"reading {request.onnx.name}", error, UPGRADE) from error
        with closing(self._open(request.folder / "engine.xml", request.target, request.precision, 1)) as session:
            times, _ = session.times(request.blank(request.target.batch))
            fusion, device = session.audit(), session.describe()["device"]
        exact = request.scheme is None or request.scheme.name in self.schemes_on(request.target)
        return BuildResult(
            engine="engine.xml",
            files=("engine.xml", "engine.bin"),
            fusion=fusion,
            layer_times=times,
            # Without VNNI the kernels saturate and answer wrongly: the engine is right, this CPU is not.
            runs_here=exact,
            reason="" if exact else f"this machine does not compute {request.scheme and request.scheme.name} exactly",
            device_command="" if exact else request.target.build_command,
            details={"device": device},
        )

    def layer_times(
        self, engine: Path, target: Target, *, precision: str, threads: int, batch: Float32
    ) -> dict[str, float]:
        """By the executed graph's own counters, with the names of all that was fused into each node."""
        opened = self._open(engine, target, precision, threads, {"PERF_COUNT": "YES"})
        with closing(opened) as session:
            times, fused = session.times(batch)
        return {fused.get(layer.name) or layer.name: layer.ms * 1000 for layer in times.layers}

    def _open(
        self,
        engine: Path,
        target: Target,
        precision: str,
        threads: int,
        more: Mapping[str, str] | None = None,
    ) -> OpenVinoSession:
        if engine.suffix != ".xml":  # by another ending OpenVINO would read other formats, and files these name
            raise BackendError(
                f"{engine.name} is not OpenVINO's IR", fix="build it again: edgeopt build --target TARGET --force"
            )
        device = target.session.device
        _require_precision(device, precision)
        properties = _properties(precision, target)
        if target.session.cache:
            properties["CACHE_DIR"] = str(make_folder(environment.cache_folder() / "openvino"))
        if family(device) in {"CPU", "AUTO"}:  # others have none, and refuse to be told; AUTO tells its CPU
            cores = allotment.usable_cores()
            properties["INFERENCE_NUM_THREADS"] = str(min(threads or cores, cores))
        return OpenVinoSession(engine, device, {**properties, **(more or {})}, batch=target.batch)


def _computed_in(capabilities: tuple[str, ...]) -> tuple[str, ...]:
    """The float precisions among a device's capabilities; fp32 of one that says nothing, or nothing of it."""
    native = tuple(precision for precision, need in _NEEDS.items() if need in capabilities)
    return ("fp32", *native) if "FP32" in capabilities or not native else native


def _capabilities(device: str) -> tuple[str, ...]:
    known = core().available_devices
    if device not in known and device not in {family(name) for name in known}:  # GPU, of GPU.0 and GPU.1
        return ()
    return tuple(core().get_property(device, "OPTIMIZATION_CAPABILITIES"))


def _require_precision(device: str, precision: str) -> None:
    """That ``device`` computes in ``precision``; raises BackendError with what it does compute in."""
    known = _capabilities(device)
    native = _computed_in(known)
    here = precision in native if known else precision not in _NEEDS  # who says nothing may still have float32
    if precision != "int8" and not here:
        raise BackendError(
            f"{device} does not compute in {precision} here", fix=f"use precision {' or '.join((*native, 'int8'))}"
        )


def _properties(precision: str, target: Target) -> dict[str, str]:
    """What a model is compiled with on any machine, as the target's session states it."""
    session = target.session
    computed = OpenVinoBackend().float_rest_on(target) if precision == "int8" else precision
    stated = {"PERFORMANCE_HINT": session.hint.upper(), "INFERENCE_PRECISION_HINT": _HINTS[computed]}
    if session.streams:
        stated["NUM_STREAMS"] = str(session.streams)
    if session.pinning is not None:
        stated["ENABLE_CPU_PINNING"] = "YES" if session.pinning else "NO"
    return stated
