"""Reads a QDQ file back and holds it against its scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt.errors import LoweringError
from edgeopt.export.passes import COMPUTE_OPS, constant
from edgeopt.schemes import Scheme

_FORBIDDEN = frozenset({"Identity", "Dropout", "QuantizeDequantize"})
#: Forbidden on what comes of the picture; a network may make position codes of a picture's shape with them.
_CASTS = frozenset({"Cast", "CastLike"})


def check_qdq(path: Path, scheme: Scheme) -> tuple[int, int, tuple[str, ...]]:
    """(compute layers, int8 layers, names of the float ones); raises LoweringError where the file breaks ``scheme``.

    A file in float16 has casts at its ends, and where an operator takes only float32.
    """
    graph = ir.load(path).graph
    compute, quantized, left = 0, 0, []
    of_picture = set(graph.inputs)
    half = any(value.dtype == ir.DataType.FLOAT16 for node in graph for value in node.outputs)
    for node in graph:
        seen = node.op_type != "Shape" and any(value in of_picture for value in node.inputs)
        if seen:
            of_picture.update(node.outputs)
        if node.op_type in _FORBIDDEN or (seen and not half and node.op_type in _CASTS):
            raise _broken(node, "should not be there", scheme)
        if node.op_type == "QuantizeLinear":
            _check_activation(node, scheme)
        elif node.op_type == "DequantizeLinear":
            _check_dequantize(node, scheme)
        elif node.op_type in COMPUTE_OPS:
            compute += 1
            if _is_quantized(node):
                quantized += 1
            else:
                left.append(node.name or "?")
    if not quantized:
        raise LoweringError(f"{path.name} has no int8 layer", fix="quantize the model first")
    return compute, quantized, tuple(left)


def _broken(node: ir.Node, what: str, scheme: Scheme) -> LoweringError:
    return LoweringError(
        f"{node.op_type} {node.name} {what} (scheme {scheme.name})",
        fix="leave that layer out of quantization, or report the model to edgeopt",
    )


def _check_activation(node: ir.Node, scheme: Scheme) -> None:
    scale, zero_point = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or zero_point is None:
        raise _broken(node, "has no constant scale and zero point", scheme)
    if scale.size != 1 or scale.ndim:
        raise _broken(node, f"is not per tensor: {scale.size} scales", scheme)
    if not np.isfinite(scale) or scale <= 0:
        raise _broken(node, f"has the scale {scale}", scheme)
    if zero_point.dtype != (np.int8 if scheme.activation_signed else np.uint8):
        raise _broken(node, f"gives {zero_point.dtype}", scheme)
    if scheme.activation_symmetric and zero_point != 0:
        raise _broken(node, f"has the zero point {zero_point}", scheme)


def _check_dequantize(node: ir.Node, scheme: Scheme) -> None:
    codes = constant(node.inputs[0])
    if codes is None:
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or source.op_type != "QuantizeLinear" or source.inputs[1:] != node.inputs[1:]:
            raise _broken(node, "does not undo a QuantizeLinear", scheme)
        return
    if codes.dtype == np.int32:
        roles = [(use.node.op_type, use.idx) for use in node.outputs[0].uses()]
        if scheme.activation_symmetric or any(role not in (("Conv", 2), ("Gemm", 2)) for role in roles):
            raise _broken(node, "is an int32 constant that is no bias", scheme)
        return
    scale, zero_point = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    axis = node.attributes.get_int("axis", 1)
    if codes.dtype != np.int8 or np.abs(codes.astype(int)).max(initial=0) > scheme.weight_max:
        raise _broken(node, f"holds weights outside [-{scheme.weight_max}, {scheme.weight_max}]", scheme)
    if scale is None or scale.shape != (codes.shape[axis],) or not np.all(np.isfinite(scale)) or np.any(scale <= 0):
        raise _broken(node, "has weights that are not scaled per channel", scheme)
    if zero_point is None or zero_point.dtype != np.int8 or np.any(zero_point):
        raise _broken(node, "has weights that are not symmetric", scheme)


def _is_quantized(node: ir.Node) -> bool:
    """Whether both factors of a compute node come from int8."""
    sources = [value.producer() if value is not None else None for value in node.inputs[:2]]
    return all(source is not None and source.op_type == "DequantizeLinear" for source in sources)
