"""Passes that tidy an exported classifier: BatchNorm folded exactly, padding inside the convolutions, layers named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from edgeopt.export.passes import (
    COMPUTE_OPS,
    GraphPass,
    absent,
    constant,
    consumers,
    initializer,
    known,
    only_consumer,
    replace,
)


def clean(model: ir.Model) -> None:
    """Remove what computes nothing in inference, and the exporter's notes (they hold paths of the user's machine)."""
    for node in list(model.graph):
        if node.op_type == "Dropout" and node.inputs[0] is not None:
            replace(model, node, node.inputs[0])
    common.IdentityEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)


def name_layers(model: ir.Model) -> None:
    """Call every compute node as its module is called (``blocks.0.0.conv_dw``), so that audits speak of modules."""
    taken: set[str] = set()
    for node in model.graph:
        if node.op_type in COMPUTE_OPS and len(node.inputs) > 1:
            weight = _source(node.inputs[1])
            if weight is not None and weight.name and weight.is_initializer():
                name, number = weight.name.removesuffix(".weight"), 1
                while name in taken:
                    name, number = f"{weight.name.removesuffix('.weight')}.{number}", number + 1
                taken.add(name)
                node.name = name


def fold_pads(model: ir.Model) -> None:
    """Move a Pad with zeros into the convolutions that read it."""
    for node in list(model.graph):
        if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
            continue
        pads = _zero_pads(node)
        readers = consumers(node.outputs[0])
        if pads is None or node.outputs[0].is_graph_output() or not all(_can_pad(reader) for reader in readers):
            continue
        spatial = len(pads) // 2
        for reader in readers:
            own = list(reader.attributes.get_ints("pads", [0] * (2 * spatial)))
            reader.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, pads, strict=True)])
            reader.attributes.pop("auto_pad", None)
        assert node.inputs[0] is not None
        replace(model, node, node.inputs[0])


def global_average_pool(model: ir.Model) -> None:
    """Write a mean over height and width as GlobalAveragePool, the form with an int8 kernel in every runtime."""
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or node.attributes.get_int("keepdims", 1) != 1:
            continue
        axes, source = constant(node.inputs[1]) if len(node.inputs) > 1 else None, node.inputs[0]
        if axes is None or source is None or source.shape is None or len(source.shape) != 4:
            continue
        if sorted(int(axis) % 4 for axis in axes) == [2, 3]:
            pooled = ir.node("GlobalAveragePool", [source], name=node.name)
            pooled.outputs[0].name = f"{node.name}.output"
            pooled.outputs[0].shape, pooled.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
            node.append(pooled)
            replace(model, node, pooled.outputs[0])


def fold_batchnorm(model: ir.Model) -> None:
    """Fold every BatchNormalization behind a convolution or Gemm into its weights and bias.

    y = g (w * x + b - mean) + beta with g = gamma / sqrt(variance + epsilon). A float weight is multiplied by g. An
    int8 weight keeps its codes: its scale is multiplied by abs(g) and the codes change sign where g < 0 (the codes are
    symmetric), so nothing is rounded again.
    """
    for node in list(model.graph):
        layer = _layer_before(node) if node.op_type == "BatchNormalization" else None
        if layer is None:
            continue
        gamma, beta, mean, variance = (known(value).astype(np.float64) for value in node.inputs[1:5])
        gain = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
        shifted = ((0.0 if bias is None else bias.astype(np.float64)) - mean) * gain + beta
        _scale_weight(model, layer, gain)
        layer.resize_inputs(3)
        layer.replace_input_with(2, initializer(model, f"{layer.name}.folded_bias", shifted.astype(np.float32)))
        replace(model, node, layer.outputs[0])


def _scale_weight(model: ir.Model, layer: ir.Node, gain: NDArray[np.float64]) -> None:
    weight = layer.inputs[1]
    assert weight is not None
    dequantize: Any = weight.producer()
    if dequantize is None:
        array = known(weight)
        shape = (-1,) + (1,) * (array.ndim - 1)
        scaled = (array * gain.reshape(shape)).astype(np.float32)
        layer.replace_input_with(1, initializer(model, f"{layer.name}.folded_weight", scaled))
        return
    codes, scale = known(dequantize.inputs[0]), known(dequantize.inputs[1])
    signs = np.sign(gain).astype(np.int8).reshape((-1,) + (1,) * (codes.ndim - 1))
    # A channel whose gain is 0 gives its bias only: its codes become 0 and its scale, now idle, stays positive.
    scales = np.where(gain == 0, scale, scale * np.abs(gain)).astype(np.float32)
    own = ir.node("DequantizeLinear", list(dequantize.inputs), dict(dequantize.attributes), name=f"{layer.name}.weight")
    own.outputs[0].name, own.outputs[0].shape = f"{layer.name}.dequantized_weight", ir.Shape(codes.shape)
    own.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    own.replace_input_with(0, initializer(model, f"{layer.name}.folded_codes", codes * signs))
    own.replace_input_with(1, initializer(model, f"{layer.name}.folded_scale", scales))
    layer.prepend(own)
    layer.replace_input_with(1, own.outputs[0])


def _source(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind quantizers and transpositions."""
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in ("QuantizeDequantize", "Transpose"):
            return None
        value = producer.inputs[0]
    return value


def _zero_pads(node: ir.Node) -> list[int] | None:
    """``[top, left, bottom, right]`` when the node pads height and width of NCHW with zeros, else None."""
    if node.inputs[1] is None:
        return None
    pads = constant(node.inputs[1])
    fill = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(())
    if pads is None or fill is None or np.any(fill) or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    begin, end = np.split(pads.astype(int), 2)
    return [*begin[2:].tolist(), *end[2:].tolist()] if not any((*begin[:2], *end[:2])) and min(pads) >= 0 else None


def _can_pad(node: ir.Node) -> bool:
    return node.op_type == "Conv" and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")


def _layer_before(node: ir.Node) -> ir.Node | None:
    """The layer whose output only ``node`` reads, when its output channels can be scaled."""
    layer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if layer is not None and _can_scale(layer) and only_consumer(layer.outputs[0]) is node:
        return layer
    return None


def _can_scale(layer: ir.Node) -> bool:
    """True when output channels are axis 0 of a constant weight."""
    plain_gemm = (
        layer.op_type == "Gemm"
        and layer.attributes.get_int("transB", 0) == 1
        and layer.attributes.get_float("alpha", 1.0) == 1.0
        and layer.attributes.get_float("beta", 1.0) == 1.0
    )
    if layer.op_type != "Conv" and not plain_gemm:
        return False
    weight = layer.inputs[1]
    if weight is None or (len(layer.inputs) > 2 and layer.inputs[2] is not None and constant(layer.inputs[2]) is None):
        return False
    producer = weight.producer()
    if producer is None:
        return constant(weight) is not None
    return bool(producer.op_type == "DequantizeLinear" and producer.attributes.get_int("axis", 1) == 0)


CLEAN = GraphPass("clean", clean, ensures=absent("Identity", "Dropout", "Constant"))
NAME_LAYERS = GraphPass("name_layers", name_layers)
FOLD_PADS = GraphPass("fold_pads", fold_pads)
GLOBAL_AVERAGE_POOL = GraphPass("global_average_pool", global_average_pool)
FOLD_BATCHNORM = GraphPass("fold_batchnorm", fold_batchnorm)
