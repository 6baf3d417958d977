"""An engine of OpenVINO, opened: numpy in, numpy out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgeopt import telemetry
from edgeopt.backends import openvino_audit
from edgeopt.backends.base import Float32, FusionReport, LayerTimes, Session, UInt8
from edgeopt.errors import REPORT, BackendError

telemetry.switch_off()  # every import of openvino here comes after this module's

UPGRADE = f"pip install --upgrade openvino, then build again; if that does not help, {REPORT}"
FIXED_SHAPES = frozenset({"NPU"})  # devices that compile a model for one batch only


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
        try:
            self._request.start_async()
            self._request.wait()
        except RuntimeError as error:  # a device that is lost, or out of memory
            raise refused(f"running {self._engine.name}", error, UPGRADE) from error
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

    def audit(self) -> FusionReport | None:
        """The precision of every compute layer of the compiled graph; None of a device that names no layers."""
        return openvino_audit.audit(self._compiled, self._read(self._batch), self._batch)

    def times(self, batch: Float32 | UInt8) -> tuple[LayerTimes, dict[str, str]]:
        """The time of every layer by the plugin's own counters; and by layer the names of all that was fused into it.

        Of a model compiled with the counters on: this session's own where it was opened so.
        """
        counting = {"PERF_COUNT": "YES"}
        own = counting.items() <= self._properties.items()
        return openvino_audit.times(self._compiled if own else self._compile(self._batch, counting), batch)

    def _read(self, batch: int) -> Any:
        """The engine's ``openvino.Model`` for ``batch`` pictures, or for any number when it is -1."""
        model = core().read_model(str(self._engine))
        shape = model.input().get_partial_shape()
        shape[0] = batch
        model.reshape(shape)
        return model

    def _compile(self, batch: int, more: Mapping[str, str] = MappingProxyType({})) -> Any:
        """The engine compiled for ``batch`` pictures, or for any number when it is -1, with ``more`` properties."""
        known = core().available_devices
        if family(self._device) not in {family(name) for name in known} | {"AUTO"}:
            raise BackendError(
                f"OpenVINO has no device {self._device} here, only {', '.join(known)}",
                fix="install its driver, or choose another session.device",
            )
        try:
            return core().compile_model(self._read(batch), self._device, {**self._properties, **more})
        except Exception as error:
            elsewhere = f'update the driver of {self._device}, or set session.device = "CPU" in the target'
            fix = UPGRADE if self._device == "CPU" else elsewhere
            raise refused(f"compiling {self._engine.name}", error, fix) from error

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
        if family(self._device) in FIXED_SHAPES:
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
        """As the plugin states it; AUTO's are those of the CPU, where that is what it runs on."""
        known = set(self._compiled.get_property("SUPPORTED_PROPERTIES"))
        if name in known:
            value = self._compiled.get_property(name)
        elif "DEVICE_PROPERTIES" in known and self._compiled.get_property("EXECUTION_DEVICES") == ["CPU"]:
            value = self._compiled.get_property("DEVICE_PROPERTIES")["CPU"].get(name)
        else:
            return None
        return value if isinstance(value, bool | int) else str(value)


@lru_cache(maxsize=1)
def core() -> Any:
    """The ``openvino.Core`` of this process: it knows the devices, and takes a while to make."""
    import openvino

    return openvino.Core()


def family(device: str) -> str:
    """GPU of GPU.0, AUTO of AUTO:GPU,CPU."""
    return device.split(".")[0].split(":")[0]


def refused(doing: str, error: Exception, fix: str) -> BackendError:
    """The error for what OpenVINO raised, which says last what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return BackendError(f"OpenVINO failed at {doing}: {lines[-1] if lines else repr(error)}", fix=fix)


def _keep(request: Any, userdata: tuple[list[Any], int]) -> None:
    """A finished request's logits, copied to their place."""
    parts, index = userdata
    parts[index] = request.get_output_tensor().data.copy()
