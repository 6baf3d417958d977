"""Attention of tensors that are not (batch, heads, places, features), which torch's exporter does not write."""

from __future__ import annotations

import math
from typing import Any

_AXES = 4


def written_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``torch.nn.functional.scaled_dot_product_attention`` of an eval-mode model as ONNX operators, by its arguments.

    Four axes are left to onnxscript's own translation; Hiera has five, attention of one head may have three.
    """
    from onnxscript import opset20 as op
    from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention as of_four_axes

    axes = len(query.shape)
    if axes == _AXES or is_causal or enable_gqa:
        return of_four_axes(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    root = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)  # of both, as torch does it
    turned = op.Transpose(key, perm=[*range(axes - 2), axes - 1, axes - 2])
    scores = op.MatMul(op.Mul(query, root), op.Mul(turned, root))
    if attn_mask is not None:
        scores = op.Add(scores, _added(op, attn_mask))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _added(op: Any, mask: Any) -> Any:
    """A mask as what is added to scores: of true and false, minus infinity where it is false."""
    import onnx_ir as ir

    return op.Where(mask, 0.0, -math.inf) if mask.dtype == ir.DataType.BOOL else mask
