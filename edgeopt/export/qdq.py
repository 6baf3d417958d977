"""Writes a quantized classifier as a QDQ ONNX file and checks on that file that it is what its scheme promises."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.compress.nncf_placement import hook_storage
from edgeopt.compress.quantize import is_quantized
from edgeopt.compress.quantizers import Quantizer
from edgeopt.errors import LoweringError
from edgeopt.export.check import check_qdq
from edgeopt.export.float_onnx import save, to_ir
from edgeopt.export.folding import CLEAN, FOLD_BATCHNORM, FOLD_PADS, GLOBAL_AVERAGE_POOL, NAME_LAYERS
from edgeopt.export.lowering import (
    ABSORB_ACTIVATIONS,
    LOWER_ACTIVATIONS,
    LOWER_WEIGHTS,
    MARKER_DOMAIN,
    MARKER_OP,
    QUANTIZE_BIASES,
    REQUANTIZE_AFTER_MOVES,
)
from edgeopt.export.passes import run_passes
from edgeopt.schemes import Scheme


@dataclass(frozen=True)
class QDQSummary:
    """What a QDQ file holds: convolutions, gemms and matmuls, how many of them are int8, and the others' names."""

    compute_layers: int
    quantized_layers: int
    float_layers: tuple[str, ...]


def export_qdq(model: nn.Module, path: Path, *, input_shape: tuple[int, int, int], scheme: Scheme) -> QDQSummary:
    """Write a model made by ``quantize`` to ``path``: ``input`` float32 [N, C, H, W] -> ``logits`` [N, classes].

    ``input_shape`` is (C, H, W). Raises LoweringError naming the first node that breaks the scheme.
    """
    if not is_quantized(model):
        raise LoweringError("the model is not quantized", fix="call quantize first, or export_float")
    graph = to_ir(_with_markers(model), input_shape)
    passes = [CLEAN, NAME_LAYERS, LOWER_WEIGHTS, FOLD_PADS, GLOBAL_AVERAGE_POOL, FOLD_BATCHNORM, LOWER_ACTIVATIONS]
    passes += [ABSORB_ACTIVATIONS, REQUANTIZE_AFTER_MOVES]
    if not scheme.activation_symmetric:
        # TensorRT has no quantized bias: there the biases stay float.
        passes.append(QUANTIZE_BIASES)
    run_passes(graph, [*passes, CLEAN])
    graph.opset_imports.pop(MARKER_DOMAIN, None)
    graph.graph.opset_imports.pop(MARKER_DOMAIN, None)
    save(graph, path)
    compute, quantized, left = check_qdq(path, scheme)
    return QDQSummary(compute, quantized, left)


class _Marker(nn.Module):
    """Stands for a quantizer while tracing: one node in the graph, with everything the lowering needs."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", quantizer.scale.clone())
        self.attributes: dict[str, Any] = {
            "zero_point": quantizer.zero_point,
            "low": quantizer.low,
            "high": quantizer.high,
        }

    def forward(self, x: Tensor) -> Tensor:
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{MARKER_DOMAIN}::{MARKER_OP}",
            (x, self.scale),
            attrs=self.attributes,
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )
        return marked


def _with_markers(model: nn.Module) -> nn.Module:
    marked = copy.deepcopy(model).cpu().eval()
    storage = hook_storage(marked)
    for name, quantizer in list(storage.named_hooks(remove_duplicate=False)):
        storage.delete_hook(name)
        storage.insert_hook_by_name(name, _Marker(quantizer))
    return marked
