"""ONNX Runtime's sessions: on which provider they are opened, and how."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgeopt import environment
from edgeopt.backends.base import Float32, Session, UInt8
from edgeopt.backends.capability import processor
from edgeopt.backends.onnx_reader import FLOAT16, read_onnx
from edgeopt.errors import REPORT, BackendError
from edgeopt.files import make_folder

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
NVIDIA = (CUDA, TENSORRT)
INSTALL_GPU = 'pip uninstall -y onnxruntime && pip install "edgeopt[gpu]"'
UPGRADE = f"use the newest onnxruntime (pip install --upgrade) and build again; if that does not help, {REPORT}"
#: It rounds float weights between int8 activations to int8, a scale a tensor: of layers that were asked to be float.
UNASKED = ("WeightBiasQuantization",)


class OnnxRuntimeSession(Session):
    """One InferenceSession with one input of float32, or of uint8 pictures, and one float32 output."""

    def __init__(self, session: Any, threads: int, *, options: Mapping[str, str]) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        kinds = ("tensor(float)", "tensor(uint8)")
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type not in kinds or outputs[0].type != kinds[0]:
            raise BackendError(
                "the model must have one float32 input, or one of uint8 pictures, and one float32 output",
                fix="give a file that edgeopt export wrote, or one of that form",
            )
        self.embedded_preprocessing = inputs[0].type == kinds[1]
        self._session = session
        self._input = inputs[0].name
        self._shape = inputs[0].shape
        self._outputs = [outputs[0].name]
        self._threads, self._options = threads, dict(options)

    def _infer(self, batch: Float32 | UInt8) -> Float32:
        try:
            logits: Float32 = self._session.run(self._outputs, {self._input: batch})[0]
        except Exception as error:
            fix = f"pass pictures of the model's shape ({', '.join(map(str, self._shape))}); if they are, {REPORT}"
            raise refused(f"running a batch {batch.shape}", error, fix) from error
        return logits

    def close(self) -> None:
        """Ends the runtime's threads."""
        self._session = None

    def describe(self) -> dict[str, Any]:
        """Provider, threads, version."""
        import onnxruntime

        return {
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "device": self._session.get_providers()[0],
            "threads": self._threads,
            **({"options": self._options} if self._options else {}),
        }


def load(engine: Path, provider: str, threads: int, configure: Mapping[str, Any] | None = None) -> Any:
    """An InferenceSession on exactly ``provider``; the runtime's own fallback to the CPU is an error."""
    import onnxruntime

    present = onnxruntime.get_available_providers()
    if provider not in present:
        raise BackendError(
            f"this ONNX Runtime has no {provider}, only {', '.join(present)}",
            fix=INSTALL_GPU if provider in NVIDIA else "choose another session.provider",
        )
    if provider in NVIDIA:
        preload()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors; its warnings are about its own clean-ups
    for name, value in (configure or {}).items():
        if "." in name:
            options.add_session_config_entry(name, value)
        else:
            setattr(options, name, value)
    try:
        session = onnxruntime.InferenceSession(
            str(engine), options, providers=providers(provider, engine), disabled_optimizers=[*UNASKED]
        )
    except Exception as error:
        raise refused(f"loading {engine.name}", error, UPGRADE) from error
    got = session.get_providers()
    if not got or got[0] != provider:
        raise BackendError(
            f"asked for {provider}, ONNX Runtime took {', '.join(got)}",
            fix="install the driver and libraries this provider needs, or choose session.provider = " + repr(CPU),
        )
    return session


def providers(provider: str, engine: Path) -> list[tuple[str, dict[str, Any]]]:
    """``provider`` with its options for ``engine``, and what takes over the layers that it does not run.

    Of options: https://onnxruntime.ai/docs/execution-providers.
    """
    if provider == CUDA:
        return [(CUDA, {"use_tf32": "0"})]  # on by default; "fp32" must be float32
    if provider != TENSORRT:
        return [(provider, {})]
    model = read_onnx(engine)
    int8 = any(node.op_type == "QuantizeLinear" for node in model.nodes)
    half = any(tensor.dtype == FLOAT16 for tensor in model.initializers.values())
    wanted = {"trt_int8_enable": int8, "trt_fp16_enable": int8 or half}  # its builder refuses types not switched on
    # A new batch size is a new build, and so is every start: with the kernels' timings at hand it takes less.
    kept = make_folder(environment.cache_folder() / "onnxruntime-tensorrt")
    timed = {"trt_timing_cache_enable": True, "trt_timing_cache_path": str(kept)}
    return [(TENSORRT, {**wanted, **timed}), *providers(CUDA, engine)]


def preload() -> None:
    """Load CUDA and cuDNN from the packages that pip installed: by itself the provider finds the system's alone."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with redirect_stdout(sys.stderr):  # it prints what it misses
            onnxruntime.preload_dlls(msvc=False)


def run_one(
    onnx: Path, provider: str, tensor: str, pictures: Float32, configure: Mapping[str, Any]
) -> npt.NDArray[Any]:
    """The output ``tensor`` of ``onnx`` for ``pictures``, on one thread."""
    session = load(onnx, provider, 1, configure)
    try:
        found: npt.NDArray[Any] = session.run([tensor], {session.get_inputs()[0].name: pictures})[0]
    except Exception as error:
        raise refused(f"asking for {tensor}", error, UPGRADE) from error
    return found


def exact(engine: Path) -> dict[str, str]:
    """The option, if any, that makes this CPU's int8 arithmetic exact for the weights in ``engine``.

    x86 without VNNI adds pairs of u8*s8 products in int16. With weights beyond 7 bits they saturate, and ONNX Runtime
    has a slower way that does not (``kOrtSessionOptionsAvx2PrecisionMode``).
    """
    found = exact_anywhere(engine)
    return found if processor() == "x86" else {}


def exact_anywhere(engine: Path) -> dict[str, str]:
    """As :func:`exact`, for whatever CPU: those with VNNI, and ARM's, take no notice of it."""
    model = read_onnx(engine)  # refuses external data
    return {"session.x64quantprecision": "1"} if model.weights_need_8_bits() else {}


def refused(doing: str, error: Exception, fix: str) -> BackendError:
    """The error for what ONNX Runtime raised, which says first what is wrong."""
    return BackendError(
        f"ONNX Runtime failed at {doing}: {str(error).splitlines()[0] if str(error) else error!r}", fix=fix
    )
