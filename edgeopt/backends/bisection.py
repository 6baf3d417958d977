"""Which layer of an engine is the first to compute something else than its ONNX says: bisection over its outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.backends.base import Backend, Float32
from edgeopt.backends.onnx_reader import COMPUTE_OPS, FLOAT, UINT8, OnnxModel, OnnxNode, read_onnx
from edgeopt.backends.onnx_writer import field, value_info
from edgeopt.config import Target
from edgeopt.metrics import FLOAT_MAX_RELATIVE, INT8_MAX_MEAN_OVER_STD

Tensor = npt.NDArray[Any]


def first_difference(
    backend: Backend, onnx: Path, target: Target, precision: str, pictures: Float32, *, reference: Path | None = None
) -> str | None:
    """The layer of ``onnx`` at which ``backend`` and the operators as they are written part; None when they do not.

    One intermediate output is looked at a time: of a quantized model those of QuantizeLinear, which stand where layers
    are fused anyway, so that what is examined is not changed by looking. They part where the mean difference is more
    than parity allows of the logits: 5 % of the spread in int8, 1e-3 of the largest value in float. ``pictures`` is
    float32 (N, 3, height, width); ``reference`` another file to compare with than ``onnx``. Raises BackendError, and
    MissingBackendError without ONNX Runtime, which is asked to compute the operators one by one.
    """
    model = read_onnx(onnx)
    taps = _taps(model)
    quantized = any(node.op_type == "QuantizeLinear" for node, _ in taps)

    with tempfile.TemporaryDirectory(prefix="edgeopt-bisection-") as folder:
        deployed = backend.rewritten(onnx, Path(folder), target, precision)

        def parted(index: int) -> bool:
            node, dtype = taps[index]
            written = [Path(folder) / name for name in ("deployed.onnx", "reference.onnx")]
            for source, path in zip((deployed, reference or onnx), written, strict=True):
                expose(source, path, node.outputs[0], dtype)
            found = backend.tap(written[0], onnx, node.outputs[0], target, precision, pictures)
            expected = as_written(written[1], node.outputs[0], pictures)
            return found is not None and _differ(expected, found, quantized=quantized)

        first = _first(len(taps), parted)
    return None if first is None else _layer(model, taps[first][0])


def _first(count: int, parted: Callable[[int], bool]) -> int | None:
    """The first index that parted, all after it having parted as well; None when the last did not."""
    if not count or not parted(count - 1):
        return None
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if parted(middle) else (middle + 1, high)
    return low


def _taps(model: OnnxModel) -> list[tuple[OnnxNode, int]]:
    """(node, data type of its output) in the order of the graph: quantizers of activations, else compute layers."""
    stored = set(model.initializers)
    quantizers = [n for n in model.nodes if n.op_type == "QuantizeLinear" and n.inputs[0] not in stored]
    if not quantizers:
        return [(node, FLOAT) for node in model.compute_nodes() if node.outputs[0] not in model.outputs]
    zeros = [model.initializers.get(node.inputs[2]) if len(node.inputs) > 2 else None for node in quantizers]
    return [(node, zero.dtype if zero else UINT8) for node, zero in zip(quantizers, zeros, strict=True)]


def _differ(expected: Tensor, found: Tensor, *, quantized: bool) -> bool:
    reference, other = expected.astype(np.float64), found.astype(np.float64)
    difference = np.abs(reference - other)
    if quantized:
        # Half a step more: roundings of ties fall either way in tensors of few levels.
        return bool(difference.mean() > INT8_MAX_MEAN_OVER_STD * reference.std() + 0.5)
    return bool(difference.max() > FLOAT_MAX_RELATIVE * max(np.abs(reference).max(), 1e-12))


def _layer(model: OnnxModel, node: OnnxNode) -> str:
    """The compute layer that made what ``node`` quantizes, else what is nearest to it."""
    makers = {output: maker for maker in model.nodes for output in maker.outputs}
    here: OnnxNode | None = node
    while here is not None and here.op_type not in COMPUTE_OPS:
        node, here = here, makers.get(here.inputs[0]) if here.inputs else None
    found = here or node
    return f"{found.name or found.outputs[0]} ({found.op_type})"


def expose(source: Path, destination: Path, tensor: str, dtype: int) -> None:
    """Write the ONNX ``source`` with ``tensor`` as one more output, of the TensorProto type ``dtype``.

    A second graph at the end of the file is merged into the first: protobuf joins fields that come twice
    (https://protobuf.dev/programming-guides/encoding/#last-one-wins), and a device has no onnx package.
    """
    output = field(12, value_info(tensor, dtype))
    destination.write_bytes(source.read_bytes() + field(7, output))  # ModelProto.graph


def as_written(onnx: Path, tensor: str, pictures: Float32) -> Tensor:
    """``tensor`` as ONNX Runtime computes it operator by operator on the CPU, nothing fused or rewritten."""
    from edgeopt.backends.onnxruntime import OnnxRuntimeBackend
    from edgeopt.backends.onnxruntime_session import run_one

    OnnxRuntimeBackend().require()
    import onnxruntime

    plain = {"graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL}
    return run_one(onnx, "CPUExecutionProvider", tensor, pictures, plain)
