"""Turns the float32 part of an ONNX file into float16, as strongly typed TensorRT networks want it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import LoweringError
from edgeopt.export.float_onnx import save
from edgeopt.export.passes import GraphPass, constant, initializer, run_passes

_HALF_MAX = float(np.finfo(np.float16).max)
#: No weight is as large: such constants stand for infinity, as in masks (-1e9, float32's least), and are cut.
_ENDLESS = 1e9
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def to_fp16(source: Path, destination: Path) -> None:
    """Write ``source`` (float or QDQ, float32) to ``destination`` with float16 inside and float32 input and output.

    Weights, biases and the scales of quantizers become float16 (ONNX: a quantizer's scale has the type of its float
    side). What ONNX wants in float32, such as Resize's scales, stays so. Constants that stand for infinity become
    float16's largest. Raises LoweringError when another value does not fit float16.
    """
    model = ir.load(source)
    run_passes(model, [GraphPass("half", _half)])
    save(model, destination)


def _half(model: ir.Model) -> None:
    """Every float32 value becomes float16 but where ONNX has no float16 for it; casts go between the two."""
    schema_of = _schemas(model)
    for value in list(model.graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT:
            _half_initializer(model, value, schema_of)
    for node in list(model.graph):
        for index, output in enumerate(node.outputs):
            if output.dtype != ir.DataType.FLOAT:
                continue
            if not _can_be_half(schema_of(node), index, of_outputs=True):
                _cast_uses(output, ir.DataType.FLOAT16, [use for use in output.uses() if _wants_half(use, schema_of)])
                continue
            output.type = ir.TensorType(ir.DataType.FLOAT16)
            _half_attributes(node)
            _cast_uses(output, ir.DataType.FLOAT, [use for use in output.uses() if not _wants_half(use, schema_of)])
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            _cast_uses(value, ir.DataType.FLOAT16, [use for use in value.uses() if _wants_half(use, schema_of)])
    _cast_outputs(model)


_SchemaOf = Callable[[ir.Node], "onnx.defs.OpSchema"]


def _schemas(model: ir.Model) -> _SchemaOf:
    """What gives the definition of a node's operator in the versions that ``model`` uses."""
    versions = model.graph.opset_imports
    return lambda node: onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)


def _wants_half(use: ir.Usage, schema_of: _SchemaOf) -> bool:
    return _can_be_half(schema_of(use.node), use.idx)


def _can_be_half(schema: onnx.defs.OpSchema, index: int, *, of_outputs: bool = False) -> bool:
    """Whether the operator's input (or output) may be float16."""
    formals = schema.outputs if of_outputs else schema.inputs
    kind = formals[min(index, len(formals) - 1)].type_str  # the last may stand for any number
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}.get(kind, [kind])
    return "tensor(float16)" in allowed


def _half_initializer(model: ir.Model, value: ir.Value, schema_of: _SchemaOf) -> None:
    uses = [use for use in value.uses() if _wants_half(use, schema_of)]
    array = constant(value)
    assert array is not None
    assert value.name is not None
    if not uses:
        return
    half = _halved(value.name, array)
    if any(use.node.op_type in _QUANTIZERS and use.idx == 1 for use in uses):
        # The smallest float16 above zero: such a channel is constant for all that float16 can tell.
        half = np.maximum(half, np.finfo(np.float16).smallest_subnormal)
    replacement = initializer(model, f"{value.name}.half", half)
    for use in uses:
        use.node.replace_input_with(use.idx, replacement)
    if not value.uses():
        del model.graph.initializers[value.name]
        replacement.name = value.name


def _halved(name: str, array: NDArray[np.float32]) -> NDArray[np.float16]:
    """``array`` in float16, what stands for infinity cut; raises LoweringError for other values that do not fit."""
    sizes = np.abs(array[np.isfinite(array)])
    largest = float(sizes[sizes < _ENDLESS].max(initial=0))
    if largest > _HALF_MAX:
        raise LoweringError(f"{name} holds {largest:g}, too large for float16", fix="build it in fp32")
    cut = np.where(np.isfinite(array), np.clip(array, -_HALF_MAX, _HALF_MAX), array)
    return np.asarray(cut, np.float16)


def _half_attributes(node: ir.Node) -> None:
    """The type that an attribute of ``node`` gives its output."""
    attributes = node.attributes
    for name in ("to", "dtype", "output_dtype"):
        if name in attributes and attributes.get_int(name) == ir.DataType.FLOAT:
            attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT16))
    if node.op_type not in ("Constant", "ConstantOfShape"):
        return
    stated = next(iter(attributes.values()), None)  # value, value_float or value_floats
    # ConstantOfShape without one gives float32 zeros.
    given = stated.value if stated is not None else np.zeros(1, np.float32)
    array = np.asarray(given.numpy() if isinstance(given, ir.TensorProtocol) else given, np.float32)
    attributes.clear()
    attributes["value"] = ir.AttrTensor("value", ir.tensor(_halved(node.name or node.op_type, array)))


def _cast_uses(value: ir.Value, to: ir.DataType, uses: list[ir.Usage]) -> None:
    """``uses`` read ``value`` through one new Cast."""
    if not uses:
        return
    ending = "half" if to == ir.DataType.FLOAT16 else "float"
    cast = ir.node("Cast", [value], {"to": int(to)}, name=f"{value.name}.to_{ending}")
    cast.outputs[0].name = f"{value.name}.{ending}"
    cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(to)
    producer = value.producer()
    if producer is not None:
        producer.append(cast)
    else:
        graph = uses[0].node.graph
        assert graph is not None
        next(iter(graph)).prepend(cast)
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
