"""Turns the float32 part of an ONNX file into float16, as strongly typed TensorRT networks want it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt.errors import LoweringError
from edgeopt.export.float_onnx import save
from edgeopt.export.passes import GraphPass, constant, initializer, run_passes

_HALF_MAX = float(np.finfo(np.float16).max)
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def to_fp16(source: Path, destination: Path) -> None:
    """Write ``source`` (float or QDQ, float32) to ``destination`` with float16 inside and float32 input and output.

    Weights, biases and the scales of quantizers become float16 (ONNX: a quantizer's scale has the type of its float
    side). Raises LoweringError when a value does not fit float16 or a scale would become zero.
    """
    model = ir.load(source)
    run_passes(model, [GraphPass("half", _half)])
    save(model, destination)


def _half(model: ir.Model) -> None:
    for value in list(model.graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT:
            _half_initializer(model, value)
    for node in model.graph:
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.type = ir.TensorType(ir.DataType.FLOAT16)
        if node.op_type == "Cast" and node.attributes.get_int("to") == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
    _cast_inputs(model)
    _cast_outputs(model)


def _half_initializer(model: ir.Model, value: ir.Value) -> None:
    array = constant(value)
    assert array is not None
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0))
    if largest > _HALF_MAX:
        raise LoweringError(f"{value.name} holds {largest:g}, too large for float16", fix="build it in fp32")
    half = array.astype(np.float16)
    is_scale = any(use.node.op_type in _QUANTIZERS and use.idx == 1 for use in value.uses())
    if is_scale:
        # The smallest float16 above zero: such a channel is constant for all that float16 can tell.
        half = np.maximum(half, np.finfo(np.float16).smallest_subnormal)
    replacement = initializer(model, f"{value.name}.half", half)
    value.replace_all_uses_with(replacement)
    assert value.name is not None
    del model.graph.initializers[value.name]
    replacement.name = value.name


def _cast_inputs(model: ir.Model) -> None:
    for value in model.graph.inputs:
        if value.dtype != ir.DataType.FLOAT or not value.uses():
            continue
        uses = list(value.uses())
        cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)}, name=f"{value.name}.to_half")
        cast.outputs[0].name = f"{value.name}.half"
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT16)
        first = next(iter(model.graph))
        first.prepend(cast)
        for use in uses:
            use.node.replace_input_with(use.idx, cast.outputs[0])


def _cast_outputs(model: ir.Model) -> None:
    for index, value in enumerate(list(model.graph.outputs)):
        if value.dtype != ir.DataType.FLOAT16:
            continue
        producer, name = value.producer(), value.name
        assert producer is not None
        value.name = f"{name}.half"
        cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.to_float")
        cast.outputs[0].name = name
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        producer.append(cast)
        model.graph.outputs[index] = cast.outputs[0]
