"""What TensorRT and TensorRT-RTX share: logger, parsing and building, and the session; ``trt`` is either module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.backends.base import BuildRequest, Float32, Session
from edgeopt.backends.gpu import open_gpu
from edgeopt.backends.onnx_reader import INT8, UINT8, OnnxModel, OnnxNode, read_onnx
from edgeopt.errors import REPORT, BackendError
from edgeopt.files import make_folder, write_bytes
from edgeopt.schemes import get_scheme, made_elsewhere

#: Words about types of quantized values that neither TensorRT nor TensorRT-RTX takes.
_TYPES = re.compile(r"uint8|zero.?point", re.IGNORECASE)
_REBUILD = "build it from what edgeopt export wrote: edgeopt build --target TARGET --force"


def check_signed_zero_points(path: Path) -> OnnxModel:
    """The model in ``path``; raises BackendError unless every Q/DQ is int8 with zero point 0, as TensorRT needs.

    TensorRT takes uint8 for int8 with a warning: the upper half of the range clips and the answers are wrong.
    """
    model = read_onnx(path)
    wrong = []
    for node in model.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            kind = _misfit(node, model)
            if kind:
                wrong.append(f"{node.name or node.outputs[0]} is {kind}")
    if wrong:
        raise BackendError(
            f"{path.name} is not for TensorRT: {len(wrong)} Q/DQ nodes are not int8 with zero point 0 ({wrong[0]})",
            fix=_other_scheme(),
        )
    return model


def concerns_types(error: BackendError) -> bool:
    """Whether :func:`build_engine` raised it for the file's int8 types, which both products judge alike."""
    return bool(_TYPES.search(error.message))


def _other_scheme() -> str:
    elsewhere = made_elsewhere(get_scheme("s8a8w"))
    return (
        f"make the scheme TensorRT runs: edgeopt compress --int8 --scheme s8a8w; of a file from elsewhere: {elsewhere}"
    )


def _misfit(node: OnnxNode, model: OnnxModel) -> str:
    """What is wrong with a Q/DQ node for TensorRT, or nothing."""
    named = node.inputs[2] if len(node.inputs) > 2 else ""
    zero = model.initializers.get(named)
    if zero is None:
        if named:
            return "computed, not constant"
        # Without a zero point quantizing makes uint8, and dequantizing takes what it is given.
        given = model.initializers.get(node.inputs[0])
        return "uint8" if node.op_type == "QuantizeLinear" or (given is not None and given.dtype == UINT8) else ""
    if zero.dtype != INT8:
        return "uint8" if zero.dtype == UINT8 else "of another type"
    values = zero.integers()
    return "shifted" if values is not None and values.any() else ""


def collecting_logger(trt: Any, *, verbose: bool = False) -> Any:
    """A logger whose ``lines`` keeps (severity, message): warnings and worse, and the rest when ``verbose``."""

    class Collector(trt.ILogger):  # type: ignore[misc]  # its base is known only once the module is loaded
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[int, str]] = []

        def log(self, severity: Any, message: str) -> None:
            level = int(severity)
            if verbose or level <= int(trt.ILogger.Severity.WARNING):
                self.lines.append((level, message))

    return Collector()


def errors_in(trt: Any, logger: Any) -> str:
    """The first error logged, for a message."""
    worst: list[str] = [text for level, text in logger.lines if level <= int(trt.ILogger.Severity.ERROR)]
    telling: list[str] = [text for text in worst if "Begin node" not in text and "End node" not in text]
    return (telling or worst or ["it gave no reason"])[0].splitlines()[0]


def build_engine(
    trt: Any,
    logger: Any,
    request: BuildRequest,
    *,
    product: str = "TensorRT",
    capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
) -> bytes:
    """The serialized engine of ``request.onnx``: strongly typed, for batches from 1 to the target's.

    ``product`` is what ``trt`` is called in errors. ``capabilities`` (TensorRT-RTX) are the GPUs to build for, ahead of
    time. Raises BackendError with the runtime's reason; a warning that uint8 is taken for int8 counts as one.
    """
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # pybind's null factory: no driver
        raise BackendError(
            f"{product} cannot make a builder: {errors_in(trt, logger)}",
            fix=f"update the NVIDIA driver to one that this {product} takes; nvidia-smi and `edgeopt doctor` name both",
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(request.onnx.read_bytes()):
        reason = str(parser.get_error(0)).splitlines()[0] if parser.num_errors else errors_in(trt, logger)
        raise BackendError(
            f"{product} cannot read {request.onnx.name}: {reason}",
            fix=f"upgrade {product}, or build for another runtime: edgeopt build --target onnxruntime",
        )
    _refuse_uint8(logger.lines, product)
    config = _configure(trt, builder, network, request, capabilities)
    cache = _load_cache(config, timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BackendError(
            f"{product} cannot build {request.onnx.name}: {errors_in(trt, logger)}",
            fix=f"when memory ran out, free some or lower batch in the target; else upgrade {product}, or {REPORT}",
        )
    if cache is not None and timing_cache is not None:
        make_folder(timing_cache.parent)
        write_bytes(timing_cache, bytes(cache.serialize()))
    return bytes(serialized)


def _refuse_uint8(lines: Iterable[tuple[int, str]], product: str) -> None:
    for _, text in lines:
        if "UINT8" in text and "INT8 instead" in text:
            raise BackendError(
                f"{product} would take uint8 for int8: {text.splitlines()[0]}",
                fix=_other_scheme(),
            )


def _configure(trt: Any, builder: Any, network: Any, request: BuildRequest, capabilities: Sequence[str]) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the audit reads the layers' types
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; "fp32" must be float32
    if capabilities:
        known = trt.ComputeCapability.__members__
        unknown = [name for name in capabilities if name not in known]
        if unknown:
            raise BackendError(
                f"this TensorRT-RTX cannot build for {', '.join(unknown)}",
                fix=f"choose session.compute_capabilities among {', '.join(sorted(set(known) - {'NONE', 'CURRENT'}))}",
            )
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            config.set_compute_capability(known[name], index)
    if network.num_inputs != 1 or network.num_outputs != 1:
        raise BackendError(
            "the model must have one input and one output",
            fix="give a file that edgeopt export wrote, or one of that form",
        )
    batch, shape = request.target.batch, request.input_shape
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, (1, *shape), (batch, *shape), (batch, *shape))
    config.add_optimization_profile(profile)
    return config


def _load_cache(config: Any, path: Path | None) -> Any:
    """The builder's timings of kernels, from earlier builds on this machine; None where the runtime keeps none.

    Timings that the builder refuses are left behind: of a damaged file, or of a GPU that has changed under the same
    name, as a Jetson's does with its power mode.
    """
    if path is None or not hasattr(config, "create_timing_cache"):
        return None
    for kept in (path.read_bytes() if path.is_file() else b"", b""):
        cache = config.create_timing_cache(kept)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


class TrtSession(Session):
    """A deserialized engine on the first GPU. Larger batches than the engine's run in several parts.

    A batch of the size of the one before is launched as one CUDA graph, where that can be had: of small networks the
    host's time to queue their kernels, one by one, is the larger part.
    """

    def __init__(self, trt: Any, engine: Path, product: str) -> None:
        self._trt, self._product = trt, product
        logger = collecting_logger(trt)
        self._logger = logger  # the runtime keeps a bare pointer to it
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._batch, self._limit = 0, 0
        self._launch: Callable[[], None] | None = None  # the graph of that batch size, where it can be had
        self._earlier_ms = 0.0  # of the parts of a large batch but for the last
        self._gpu = open_gpu()
        try:
            self._load(engine)
        except BaseException:  # nobody gets a session to close
            self._give_back()
            raise

    def _load(self, engine: Path) -> None:
        """The engine, its context and buffers."""
        trt, product, logger = self._trt, self._product, self._logger
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise BackendError(
                f"{product} cannot load {engine.name}: {errors_in(trt, logger)}",
                fix="it fits one version, system and GPU; build it here: edgeopt build --target TARGET --force",
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(
                f"{product} cannot run {engine.name}: {errors_in(trt, logger)}",
                fix="free GPU memory (nvidia-smi lists who holds it), or lower batch in the target and build again",
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise BackendError("the engine must have one input and one output", fix=_REBUILD)
        self._input, self._output = inputs[0], outputs[0]
        if any(self._engine.get_tensor_dtype(name) != trt.float32 for name in names):
            raise BackendError("the engine's input and output must be float32", fix=_REBUILD)
        self._limit = int(self._engine.get_tensor_profile_shape(self._input, 0)[2][0])
        self._shape = tuple(int(dim) for dim in self._engine.get_tensor_shape(self._input))[1:]
        classes = tuple(int(dim) for dim in self._engine.get_tensor_shape(self._output))[1:]
        self._in = self._gpu.pinned((self._limit, *self._shape))
        self._out = self._gpu.pinned((self._limit, *classes))
        self._in_address = self._gpu.allocate(self._in.nbytes)
        self._out_address = self._gpu.allocate(self._out.nbytes)
        self._context.set_tensor_address(self._input, self._in_address)
        self._context.set_tensor_address(self._output, self._out_address)

    def _infer(self, batch: Float32) -> Float32:
        if batch.shape[1:] != self._shape:
            raise BackendError(
                f"expected pictures {self._shape}, got {batch.shape[1:]}",
                fix="prepare them with the preprocess.json of the engine's variant",
            )
        self._earlier_ms = 0.0
        if len(batch) <= self._limit:
            return self._run(batch)
        parts = []
        for start in range(0, len(batch), self._limit):
            self._earlier_ms += self._gpu.elapsed_ms() if start else 0.0
            parts.append(self._run(batch[start : start + self._limit]))
        return np.concatenate(parts)

    def device_ms(self) -> float:
        """Of the last call: the GPU's time for its kernels, without copies (what trtexec calls GPU Compute Time)."""
        return self._earlier_ms + self._gpu.elapsed_ms()

    def _run(self, batch: Float32) -> Float32:
        size = len(batch)
        is_new = size != self._batch
        if is_new:
            self._context.set_input_shape(self._input, (size, *self._shape))
            self._batch, self._launch = size, None
        np.copyto(self._in[:size], batch)
        self._gpu.upload(self._in_address, self._in[:size])
        self._gpu.begin()
        if self._launch is not None:
            self._launch()
        elif not self._enqueue():
            raise BackendError(
                f"{self._product} could not run a batch of {size}: {errors_in(self._trt, self._logger)}",
                fix="see in nvidia-smi whether the GPU answers and who else holds its memory, then try again",
            )
        self._gpu.end()
        self._gpu.download(self._out[:size], self._out_address)
        self._gpu.synchronize()
        if is_new:  # after a change of shape TensorRT wants one plain call before a capture
            self._launch = self._gpu.capture(self._enqueue)
        logits: Float32 = self._out[:size].copy()
        return logits

    def _enqueue(self) -> bool:
        return bool(self._context.execute_async_v3(self._gpu.stream))

    def inspect(self) -> str:
        """The engine inspector's JSON."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context  # with it, tensor formats are worded in full
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def describe(self) -> dict[str, Any]:
        """Runtime, memory by which package, the input, largest batch, whether the last call's size has a CUDA graph."""
        return {
            "runtime": f"{self._product} {self._trt.__version__}",
            "device": "GPU 0",
            "memory": self._gpu.name,
            "input": self._input,
            "max_batch": self._limit,
            "cuda_graph": self._launch is not None,
        }

    def close(self) -> None:
        """Frees the engine and its GPU memory."""
        if self._context is not None:
            self._gpu.synchronize()
            self._give_back()

    def _give_back(self) -> None:
        self._in = self._out = np.empty(0, np.float32)  # views of memory that goes
        self._context = self._engine = self._runtime = self._launch = None
        self._gpu.close()
