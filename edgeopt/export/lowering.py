"""Passes that turn quantizer markers into QuantizeLinear and DequantizeLinear where the runtimes fuse them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.errors import LoweringError
from edgeopt.export.passes import (
    GraphPass,
    absent,
    constant,
    consumers,
    initializer,
    insert_after,
    known,
    only_consumer,
    replace,
)

MARKER_DOMAIN, MARKER_OP = "edgeopt", "QuantizeDequantize"
# They pass values on without computing new ones (zeros of a Pad are on every grid).
MOVING_OPS = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather", "Concat", "Pad"}
)
# Room below int32's end for the sum of products that is added to the bias.
_LARGEST_BIAS_CODE = 2**30


def lower_weights(model: ir.Model) -> None:
    """Store every quantized weight as int8 codes behind a DequantizeLinear, transposed when the graph transposes it."""
    for node in list(model.graph):
        weight = constant(node.inputs[0]) if node.op_type == MARKER_OP else None
        if weight is None:
            continue
        scale = known(node.inputs[1]).astype(np.float32)
        low, high = node.attributes.get_int("low"), node.attributes.get_int("high")
        axis = _axis_of(scale.shape, weight.shape)
        # Float32 throughout: the same arithmetic as the quantizer's in training.
        codes = np.clip(np.round(weight.astype(np.float32) / scale), low, high).astype(np.int8)
        scales = scale.reshape(-1) if scale.size > 1 else np.full(weight.shape[axis], scale.item(), np.float32)
        _dequantize_weight(model, node, codes, scales, axis)


def _axis_of(scale: tuple[int, ...], weight: tuple[int, ...]) -> int:
    """Along which the channels are that have scales; of one scale, that of a single channel where there is one."""
    if any(size > 1 for size in scale):
        return int(np.argmax(scale))
    return weight.index(1) if 1 in weight else 0


def _dequantize_weight(
    model: ir.Model, node: ir.Node, codes: NDArray[np.int8], scales: NDArray[np.float32], axis: int
) -> None:
    """Put DequantizeLinear nodes where ``node`` and the transpositions behind it were, one for each consumer."""
    assert node.inputs[0] is not None
    name = node.inputs[0].name or node.name or "weight"
    for reader in consumers(node.outputs[0]):
        own_codes, own_axis, last = codes, axis, node
        if reader.op_type == "Transpose":
            order = list(reader.attributes.get_ints("perm", list(reversed(range(codes.ndim)))))
            own_codes, own_axis, last = np.ascontiguousarray(codes.transpose(order)), order.index(axis), reader
        inputs = [
            initializer(model, f"{name}.codes", own_codes),
            initializer(model, f"{name}.scale", scales),
            initializer(model, f"{name}.zero_point", np.zeros(scales.shape, np.int8)),
        ]
        dequantize = insert_after(last, "DequantizeLinear", inputs, {"axis": own_axis}, name=f"{name}.dequantize")
        if last is reader:
            replace(model, reader, dequantize.outputs[0])
        else:
            for index, value in enumerate(reader.inputs):
                if value is node.outputs[0]:
                    reader.replace_input_with(index, dequantize.outputs[0])
    model.graph.remove(node, safe=True)


def lower_activations(model: ir.Model) -> None:
    """Replace every remaining marker by QuantizeLinear and DequantizeLinear with one scale and zero point."""
    for node in list(model.graph):
        if node.op_type != MARKER_OP:
            continue
        source = node.inputs[0]
        assert source is not None
        scale = known(node.inputs[1]).astype(np.float32)
        if scale.size != 1:
            raise LoweringError(f"the activation {source.name} has {scale.size} scales", fix="quantize it per tensor")
        integer = np.int8 if node.attributes.get_int("low") < 0 else np.uint8
        zero_point = np.asarray(node.attributes.get_int("zero_point"), integer)
        name = source.name or node.name or "activation"
        parameters = [
            initializer(model, f"{name}.scale", scale.reshape(())),
            initializer(model, f"{name}.zero_point", zero_point),
        ]
        quantize = insert_after(node, "QuantizeLinear", [source, *parameters], name=f"{name}.quantize")
        dequantize = insert_after(
            quantize, "DequantizeLinear", [quantize.outputs[0], *parameters], name=f"{name}.dequantize"
        )
        replace(model, node, dequantize.outputs[0])


def requantize_after_moves(model: ir.Model) -> None:
    """Repeat the quantizer behind operations that only move values: exact, and each layer sees a DequantizeLinear."""
    for node in list(model.graph):
        parameters = _common_grid(node) if node.op_type in MOVING_OPS else None
        if parameters is None:
            continue
        for output in node.outputs:
            readers = consumers(output)
            if not output.is_graph_output() and not any(reader.op_type == "QuantizeLinear" for reader in readers):
                _requantize(node, output, parameters, readers)


def _common_grid(node: ir.Node) -> list[ir.Value] | None:
    """Scale and zero point that all data inputs of a moving operation share, None when they differ or are float."""
    data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    grids: list[list[ir.Value]] = []
    for value in data:
        source = value.producer() if value is not None else None
        if source is None or source.op_type != "DequantizeLinear" or constant(source.inputs[0]) is not None:
            return None
        grids.append(list(source.inputs[1:3]))
    first = [known(value) for value in grids[0]]
    same = all(np.array_equal(known(value), other) for grid in grids for value, other in zip(grid, first, strict=True))
    return grids[0] if same else None


def _requantize(node: ir.Node, output: ir.Value, parameters: list[ir.Value], readers: list[ir.Node]) -> None:
    name = output.name or node.name or "moved"
    quantize = insert_after(node, "QuantizeLinear", [output, *parameters], name=f"{name}.quantize")
    dequantize = insert_after(
        quantize, "DequantizeLinear", [quantize.outputs[0], *parameters], name=f"{name}.dequantize"
    )
    for reader in readers:
        for index, value in enumerate(reader.inputs):
            if value is output:
                reader.replace_input_with(index, dequantize.outputs[0])


def absorb_activations(model: ir.Model) -> None:
    """Remove a Relu or Clip whose cut the quantizer behind it makes anyway; keep the half that it does not make.

    The cut at ``end`` is made by the quantizer when ``end`` itself gets the outermost code: saturation is monotonic.
    """
    for node in list(model.graph):
        quantize = only_consumer(node.outputs[0]) if node.op_type in ("Relu", "Clip") else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or node.inputs[0] is None:
            continue
        ends = _ends(node)
        scale, zero_point = known(quantize.inputs[1]), known(quantize.inputs[2])
        if ends is None:
            continue
        limits = np.iinfo(zero_point.dtype)
        low, high = (np.round(np.float32(end) / scale) + int(zero_point) for end in ends)
        if low <= limits.min and high >= limits.max:
            replace(model, node, node.inputs[0])
        elif high >= limits.max and node.op_type == "Clip" and ends[0] == 0:
            relu = insert_after(node, "Relu", [node.inputs[0]], name=node.name or "relu")
            replace(model, node, relu.outputs[0])


def _ends(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, float("inf")
    ends = [-float("inf"), float("inf")]
    for index, value in enumerate(node.inputs[1:3]):
        if value is not None:
            array = constant(value)
            if array is None:
                return None
            ends[index] = float(array)
    return ends[0], ends[1]


def quantize_biases(model: ir.Model) -> None:
    """Store the biases of fully quantized layers as int32 codes with scale (input scale * weight scale), zero point 0.

    That is the layout of ONNX Runtime's QLinearConv and QGemm. Where a channel's scale is too small for its bias to fit
    (a channel that is nearly constant) the weight's scale grows until it fits and the channel's codes are rounded anew.
    """
    for layer in list(model.graph):
        if layer.op_type not in ("Conv", "Gemm") or len(layer.inputs) < 3:
            continue
        source, weight = (value.producer() if value is not None else None for value in layer.inputs[:2])
        bias = constant(layer.inputs[2])
        if bias is None or source is None or weight is None:
            continue
        if source.op_type != "DequantizeLinear" or weight.op_type != "DequantizeLinear":
            continue
        input_scale = known(source.inputs[1]).astype(np.float32)
        needed = np.abs(bias.astype(np.float64)) / (float(input_scale) * _LARGEST_BIAS_CODE)
        weight_scale = _grow_scale(model, weight, needed)
        scale = (input_scale * weight_scale).astype(np.float32)
        codes = np.round(bias.astype(np.float64) / scale).astype(np.int32)
        inputs = [
            initializer(model, f"{layer.name}.bias.codes", codes),
            initializer(model, f"{layer.name}.bias.scale", scale),
            initializer(model, f"{layer.name}.bias.zero_point", np.zeros(scale.shape, np.int32)),
        ]
        dequantize = insert_after(weight, "DequantizeLinear", inputs, {"axis": 0}, name=f"{layer.name}.bias.dequantize")
        layer.replace_input_with(2, dequantize.outputs[0])


def _grow_scale(model: ir.Model, weight: ir.Node, needed: NDArray[np.float64]) -> NDArray[np.float32]:
    scale: NDArray[np.float32] = known(weight.inputs[1]).astype(np.float32)
    codes = known(weight.inputs[0])
    if np.all(scale >= needed):
        return scale
    grown: NDArray[np.float32] = np.maximum(scale, needed.astype(np.float32) * np.float32(1.0 + 1e-6))
    axis = weight.attributes.get_int("axis", 1)
    shape = [-1 if index == axis else 1 for index in range(codes.ndim)]
    rounded = np.round(codes * (scale / grown).reshape(shape)).astype(np.int8)
    assert weight.name is not None
    weight.replace_input_with(0, initializer(model, f"{weight.name}.codes", rounded))
    weight.replace_input_with(1, initializer(model, f"{weight.name}.scale", grown))
    return grown


LOWER_WEIGHTS = GraphPass("lower_weights", lower_weights)
LOWER_ACTIVATIONS = GraphPass("lower_activations", lower_activations, ensures=absent(MARKER_OP))
REQUANTIZE_AFTER_MOVES = GraphPass("requantize_after_moves", requantize_after_moves, requires=absent(MARKER_OP))
ABSORB_ACTIVATIONS = GraphPass("absorb_activations", absorb_activations, requires=absent(MARKER_OP))
QUANTIZE_BIASES = GraphPass("quantize_biases", quantize_biases, requires=absent(MARKER_OP))
