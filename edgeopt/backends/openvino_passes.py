"""What a graph needs before OpenVINO's CPU plugin compiles it well and answers rightly."""

from __future__ import annotations

import re
from typing import Any


def prepare(model: Any) -> None:
    """Change ``model`` (an ``openvino.Model``) in place; what it computes stays."""
    _simplify(model)
    _pool_before_strided_pointwise(model)
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


def _number_anew(model: Any) -> None:
    """OpenVINO's made-up names count on through a process; by place, the same file gives the same engine."""
    for place, node in enumerate(model.get_ordered_ops()):
        kind, name = node.get_type_name(), node.get_friendly_name()
        # A folded constant bears the name of what it was computed from.
        if re.fullmatch(r"[A-Z][A-Za-z0-9]*_\d+" if kind == "Constant" else rf"{kind}_\d+", name):
            node.set_friendly_name(f"{kind}_{place}")
