"""What a graph needs before OpenVINO's CPU plugin compiles it well and answers rightly."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np


def prepare(model: Any) -> None:
    """Change ``model`` (an ``openvino.Model``) in place; what it computes stays."""
    _simplify(model)
    _pool_before_strided_pointwise(model)
    _convolve_int8_gemms(model)
    _number_anew(model)


def _simplify(model: Any) -> None:
    """OpenVINO's own common clean-ups, as its converter applies them: the file's graph halves, its answers stay."""
    try:
        from openvino._offline_transformations import apply_moc_transformations
    except ImportError:  # not a public name: without it the file is larger, no more
        return
    apply_moc_transformations(model, cf=False, smart_reshape=False)


def _pool_before_strided_pointwise(model: Any) -> None:
    """Take the stride of 1x1 convolutions with 8, 24, 40, ... input channels into a 1x1 pooling before them.

    oneDNN's int8 kernel for them (``jit_avx2_1x1_I8``, measured with OpenVINO 2026.4) gathers the strided pixels into
    a buffer per thread that is too small when the channels are an odd multiple of 8: with two threads one overwrites
    the other's, and every run answers differently, by up to 28 int8 steps. One thread, stride 1 or channels of
    another count are right. Pruned ResNets have such layers in every downsampling branch.
    """
    import openvino.opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution":
            continue
        _, channels, *kernel = (dimension.get_length() for dimension in node.input(1).get_partial_shape())
        attributes = node.get_attributes()
        if channels % 16 != 8 or set(kernel) != {1} or max(attributes["strides"]) == 1 or max(attributes["pads_end"]):
            continue
        flat, zeros = [1] * len(kernel), [0] * len(kernel)
        pooled = ops.max_pool(node.input_value(0), attributes["strides"], flat, zeros, zeros, flat)
        dense = ops.convolution(pooled.output(0), node.input_value(1), flat, zeros, zeros, flat)
        dense.set_friendly_name(node.get_friendly_name())
        for user in node.output(0).get_target_inputs():
            user.replace_source_output(dense.output(0))
    model.validate_nodes_and_infer_types()


def _convolve_int8_gemms(model: Any) -> None:
    """Turn int8 gemms of (N, features), which is what classifiers are, into 1x1 convolutions of one pixel.

    The plugin's gemm for them on CPUs without VNNI (``jit_gemm_I8``, measured with OpenVINO 2026.4 on AVX2) takes 66
    microseconds for 1280 features and 10 classes, 5 % of EfficientNet-Lite0 at 128 pixels and four times what float
    takes; its kernel for 1x1 convolutions takes 10. The sums are the same.
    """
    import openvino.opset13 as ops

    def shaped(value: Any, shape: list[int]) -> Any:
        return ops.reshape(value, np.array(shape, np.int64), special_zero=True).output(0)

    for node in model.get_ordered_ops():
        if not _is_int8_gemm(node):
            continue
        classes, features = (dimension.get_length() for dimension in node.input(1).get_partial_shape())
        codes, scale = (part.get_node() for part in node.input_value(1).get_node().input_values())
        weights = ops.multiply(
            ops.convert(shaped(codes.input_value(0), [classes, features, 1, 1]), "f32"),
            shaped(scale.output(0), [-1, 1, 1, 1]),
        )
        pixel = shaped(node.input_value(0), [0, features, 1, 1])
        flat, zeros = [1, 1], [0, 0]
        dense = ops.convolution(pixel, weights.output(0), flat, zeros, zeros, flat)
        dense.set_friendly_name(node.get_friendly_name())
        last, answer = node, dense.output(0)
        (user,) = (one.get_node() for one in node.output(0).get_target_inputs())
        if user.get_type_name() == "Add":
            bias = next(value for value in user.input_values() if value.get_node() != node)
            shape = bias.get_partial_shape()
            if shape.is_static and math.prod(shape.to_shape()) == classes:  # the kernel adds it on its way out
                last, answer = user, ops.add(answer, shaped(bias, [1, classes, 1, 1])).output(0)
        flattened = ops.reshape(answer, np.array([0, classes], np.int64), special_zero=True)
        if last is not node:
            flattened.set_friendly_name(last.get_friendly_name())
        flattened.output(0).set_names(last.output(0).get_names())
        for reader in last.output(0).get_target_inputs():
            reader.replace_source_output(flattened.output(0))
    model.validate_nodes_and_infer_types()


def _is_int8_gemm(node: Any) -> bool:
    """A MatMul of quantized (N, features) and the transpose of scaled int8 weights, one row a class, read once."""
    if node.get_type_name() != "MatMul" or node.get_attributes() != {"transpose_a": False, "transpose_b": True}:
        return False
    inputs, weights = (value.get_node() for value in node.input_values())
    if inputs.get_type_name() != "FakeQuantize" or weights.get_type_name() != "Multiply":
        return False
    codes = weights.input_value(0).get_node()
    return (
        codes.get_type_name() == "Convert"
        and codes.input_value(0).get_element_type().to_string() == "i8"
        and node.input(0).get_partial_shape().rank.get_length() == 2
        and len(node.output(0).get_target_inputs()) == 1
        and weights.input_value(1).get_node().get_type_name() == "Constant"
    )


def _number_anew(model: Any) -> None:
    """OpenVINO's made-up names count on through a process; by place, the same file gives the same engine."""
    for place, node in enumerate(model.get_ordered_ops()):
        kind, name = node.get_type_name(), node.get_friendly_name()
        # A folded constant bears the name of what it was computed from.
        if re.fullmatch(r"[A-Z][A-Za-z0-9]*_\d+" if kind == "Constant" else rf"{kind}_\d+", name):
            node.set_friendly_name(f"{kind}_{place}")
