"""OpenVINO: builds write its IR and audit the graph the plugin compiled; sessions answer through it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgeopt import environment, telemetry
from edgeopt.backends.audit import TIMED_RUNS, ComputeLayer, conv_macs, fusion_report, layer_times, matmul_macs
from edgeopt.backends.base import (
    Availability,
    Backend,
    BuildRequest,
    BuildResult,
    Float32,
    FusionReport,
    LayerTimes,
    Session,
    UInt8,
)
from edgeopt.backends.capability import precisions_of, processor, schemes_for
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.backends.openvino_passes import prepare
from edgeopt.config import Target
from edgeopt.errors import REPORT, BackendError
from edgeopt.files import make_folder

telemetry.switch_off()  # every import of openvino here comes after this module's

_INSTALL = 'pip install "edgeopt[openvino]"'
_UPGRADE = f"pip install --upgrade openvino, then build again; if that does not help, {REPORT}"
#: What the plugin computes in where the graph does not say int8. OpenVINO's own default is bf16 where the CPU has it,
#: so float32 must be asked for, and is for the layers int8 leaves over too.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_NEEDS = {"bf16": "BF16", "fp16": "FP16"}  # precision -> name in the device's OPTIMIZATION_CAPABILITIES
_FIXED_SHAPES = frozenset({"NPU"})  # devices that compile a model for one batch only
_COMPUTE = frozenset({"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "MHA"})
_INT8 = frozenset({"i8", "u8"})


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
        if not _core().available_devices:
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
        kind = {"GPU": "intel-gpu", "NPU": "intel-npu"}.get(_family(target.session.device), processor())
        return schemes_for(self.name, kind)

    def missing(self, target: Target) -> str:
        """The device, when OpenVINO does not find it."""
        known = _core().available_devices
        found = _family(target.session.device) in {_family(name) for name in known} | {"AUTO"}
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
            model = _core().read_model(str(exposed))
            prepare(model)
            compiled = _core().compile_model(model, target.session.device, _properties(precision, target))
            request = compiled.create_infer_request()
            request.infer({0: pictures})
            return np.array(request.get_tensor(tensor).data)
        except Exception as error:
            raise _refused(f"asking for {tensor}", error, _UPGRADE) from error

    def _build(self, request: BuildRequest) -> BuildResult:
        import openvino

        read_onnx(request.onnx)  # refuses external data
        if missing := self.missing(request.target):
            on_device = request.target.build_command
            return BuildResult(engine=None, reason=missing, device_command=on_device, runs_here=False)
        try:
            model = _core().read_model(str(request.onnx))
            prepare(model)
            # Half-precision storage is OpenVINO's default, and would change a float32 baseline.
            openvino.save_model(model, str(request.folder / "engine.xml"), compress_to_fp16=False)
        except Exception as error:
            raise _refused(f"reading {request.onnx.name}", error, _UPGRADE) from error
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
        missing = _NEEDS.get(precision)
        if missing and missing not in _capabilities(device):
            raise BackendError(f"{device} does not compute in {precision} here", fix="use precision fp32 or int8")
        properties = _properties(precision, target)
        if target.session.cache:
            properties["CACHE_DIR"] = str(make_folder(environment.cache_folder() / "openvino"))
        if device == "CPU":
            cores = environment.usable_cores()
            properties["INFERENCE_NUM_THREADS"] = str(min(threads or cores, cores))
        return OpenVinoSession(engine, device, {**properties, **(more or {})}, batch=target.batch)


class OpenVinoSession(Session):
    """A model compiled for the target's batch, which is fastest, and on demand one that takes any batch."""

    def __init__(self, engine: Path, device: str, properties: dict[str, str], *, batch: int) -> None:
        self._engine, self._device, self._properties, self._batch = engine, device, properties, batch
        self._compiled = self._compile(batch)
        self.embedded_preprocessing = self._compiled.input().get_element_type().to_string() == "u8"
        self._request = self._compiled.create_infer_request()
        # Views of the runtime's own tensors: copying into them is cheaper than wrapping a new array every time.
        self._input = self._request.get_input_tensor().data
        self._output = self._request.get_output_tensor().data
        self._any: Any = None
        self._queue: Any = None

    def _infer(self, batch: Float32 | UInt8) -> Float32:
        if batch.shape != self._input.shape:
            several = batch.shape[1:] == self._input.shape[1:] and len(batch) % self._batch == 0
            if several and self._properties["PERFORMANCE_HINT"] == "THROUGHPUT":
                return self._infer_several(batch)
            return self._infer_any(batch)
        np.copyto(self._input, batch)
        self._request.start_async()
        self._request.wait()
        return self._output.copy()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Gives the compiled models back."""
        self._input = self._output = self._request = self._compiled = self._any = self._queue = None

    def describe(self) -> dict[str, Any]:
        """Device, threads and precision as the plugin states them, version."""
        import openvino

        stated = {name: self._property(name) for name in ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")}
        return {
            "runtime": f"openvino {str(openvino.__version__).split('-', maxsplit=1)[0]}",
            "device": ",".join(self._compiled.get_property("EXECUTION_DEVICES")),
            "threads": stated["INFERENCE_NUM_THREADS"],
            "streams": stated["NUM_STREAMS"],
            "pinning": stated["ENABLE_CPU_PINNING"],
            "hint": self._properties["PERFORMANCE_HINT"].lower(),
            "precision_hint": self._properties["INFERENCE_PRECISION_HINT"],
            "static_batch": self._batch,
        }

    def audit(self) -> FusionReport:
        """The precision of every compute layer of the compiled graph."""
        layers = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            information = node.get_rt_info()
            kind = _text(information["layerType"])
            if kind in _COMPUTE:
                int8 = _text(information["runtimePrecision"]) in _INT8
                layers.append(ComputeLayer(node.get_friendly_name(), int8, self._macs(kind, node)))
        return fusion_report("openvino", layers, "runtimePrecision of the compiled model's layers (get_runtime_model)")

    def times(self, batch: Float32 | UInt8) -> tuple[LayerTimes, dict[str, str]]:
        """The time of every layer by the plugin's own counters; and by layer the names of all that was fused into it.

        Of a model compiled with the counters on: this session's own where it was opened so.
        """
        counting = {"PERF_COUNT": "YES"}
        own = counting.items() <= self._properties.items()
        compiled = self._compiled if own else self._compile(self._batch, counting)
        request = compiled.create_infer_request()
        request.get_input_tensor().data[:] = batch
        samples = []
        for run in range(1 + TIMED_RUNS):
            request.infer()
            for layer in request.get_profiling_info() if run else ():  # the first run allocates
                if str(layer.status).endswith("EXECUTED"):
                    ms = layer.real_time.total_seconds() * 1000
                    samples.append((layer.node_name, f"{layer.node_type} ({layer.exec_type})", ms))
        fused = {
            node.get_friendly_name(): _text(node.get_rt_info()["originalLayersNames"])
            for node in compiled.get_runtime_model().get_ordered_ops()
        }
        source = "OpenVINO's performance counters"
        return layer_times(samples, runs=TIMED_RUNS, batch=self._batch, source=source), fused

    def _macs(self, kind: str, node: Any) -> int | None:
        """MACs of one picture."""
        inputs = [list(port.get_shape()) for port in node.inputs()]
        output = list(node.output(0).get_shape())
        if kind in ("Convolution", "GroupConvolution"):
            return conv_macs(output, inputs[1]) // self._batch
        if kind in ("FullyConnected", "MatMul"):
            return matmul_macs(output, inputs[0]) // self._batch
        return None

    def _compile(self, batch: int, more: Mapping[str, str] = MappingProxyType({})) -> Any:
        """The engine compiled for ``batch`` pictures, or for any number when it is -1, with ``more`` properties."""
        core = _core()
        known = core.available_devices
        if _family(self._device) not in {_family(name) for name in known} | {"AUTO"}:
            raise BackendError(
                f"OpenVINO has no device {self._device} here, only {', '.join(known)}",
                fix="install its driver, or choose another session.device",
            )
        try:
            model = core.read_model(str(self._engine))
            shape = model.input().get_partial_shape()
            shape[0] = batch
            model.reshape(shape)
            return core.compile_model(model, self._device, {**self._properties, **more})
        except Exception as error:
            elsewhere = f'update the driver of {self._device}, or set session.device = "CPU" in the target'
            fix = _UPGRADE if self._device == "CPU" else elsewhere
            raise _refused(f"compiling {self._engine.name}", error, fix) from error

    def _infer_several(self, batch: Float32 | UInt8) -> Float32:
        """Batches of the compiled size through as many requests at once as the plugin finds best."""
        import openvino

        if self._queue is None:
            self._queue = openvino.AsyncInferQueue(self._compiled)
            self._queue.set_callback(_keep)
        parts: list[Any] = [None] * (len(batch) // self._batch)
        for index, part in enumerate(np.split(batch, len(parts))):
            self._queue.start_async({0: part}, userdata=(parts, index))
        self._queue.wait_all()
        return np.concatenate(parts)

    def _infer_any(self, batch: Float32 | UInt8) -> Float32:
        import openvino

        if batch.shape[1:] != self._input.shape[1:]:
            raise BackendError(
                f"expected pictures {tuple(self._input.shape[1:])}, got {batch.shape[1:]}",
                fix="prepare them with the preprocess.json of the engine's variant",
            )
        if _family(self._device) in _FIXED_SHAPES:
            return self._infer_padded(batch)
        if self._any is None:
            self._any = self._compile(-1).create_infer_request()
        shared = np.require(batch, requirements=("C", "W"))  # a mapped picture set cannot be written to, and is copied
        self._any.set_input_tensor(openvino.Tensor(shared, shared_memory=True))
        self._any.infer()
        return self._any.get_output_tensor().data.copy()  # type: ignore[no-any-return]

    def _infer_padded(self, batch: Float32 | UInt8) -> Float32:
        """A batch of another size in parts of the compiled one, the last filled up with zeros."""
        filled = np.zeros((-(-len(batch) // self._batch) * self._batch, *batch.shape[1:]), batch.dtype)
        filled[: len(batch)] = batch
        parts = [self._infer(part) for part in np.split(filled, len(filled) // self._batch)]
        return np.concatenate(parts)[: len(batch)]

    def _property(self, name: str) -> Any:
        if name not in set(self._compiled.get_property("SUPPORTED_PROPERTIES")):
            return None
        value = self._compiled.get_property(name)
        return value if isinstance(value, bool | int) else str(value)


@lru_cache(maxsize=1)
def _core() -> Any:
    import openvino

    return openvino.Core()


def _keep(request: Any, userdata: tuple[list[Any], int]) -> None:
    """A finished request's logits, copied to their place."""
    parts, index = userdata
    parts[index] = request.get_output_tensor().data.copy()


def _family(device: str) -> str:
    """GPU of GPU.0, AUTO of AUTO:GPU,CPU."""
    return device.split(".")[0].split(":")[0]


def _computed_in(capabilities: tuple[str, ...]) -> tuple[str, ...]:
    """The float precisions among a device's capabilities; fp32 of one that says nothing, or nothing of it."""
    native = tuple(precision for precision, need in _NEEDS.items() if need in capabilities)
    return ("fp32", *native) if "FP32" in capabilities or not native else native


def _capabilities(device: str) -> tuple[str, ...]:
    core = _core()
    known = core.available_devices
    if device not in known and device not in {_family(name) for name in known}:  # GPU, of GPU.0 and GPU.1
        return ()
    return tuple(core.get_property(device, "OPTIMIZATION_CAPABILITIES"))


def _properties(precision: str, target: Target) -> dict[str, str]:
    """What a model is compiled with on any machine, as the target's session states it."""
    session = target.session
    stated = {"PERFORMANCE_HINT": session.hint.upper(), "INFERENCE_PRECISION_HINT": _HINTS[precision]}
    if session.streams:
        stated["NUM_STREAMS"] = str(session.streams)
    if session.pinning is not None:
        stated["ENABLE_CPU_PINNING"] = "YES" if session.pinning else "NO"
    return stated


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _refused(doing: str, error: Exception, fix: str) -> BackendError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return BackendError(f"OpenVINO failed at {doing}: {lines[-1] if lines else repr(error)}", fix=fix)
