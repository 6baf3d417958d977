"""Writes a float32 classifier as a self-contained ONNX file with a dynamic batch."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgeopt.errors import REPORT, LoweringError
from edgeopt.export.attention import written_attention
from edgeopt.export.folding import CLEAN, FOLD_BATCHNORM, FOLD_PADS, GLOBAL_AVERAGE_POOL, NAME_LAYERS
from edgeopt.export.passes import run_passes
from edgeopt.models.failing import failing_module

# The exporter's own opset, so that no version conversion runs, and the newest that TensorRT 10.3's parser (JetPack 6)
# reads; ONNX Runtime 1.23 reads up to 23. IR version 10 is what both read, too.
OPSET = 20
IR_VERSION = 10
INPUT, OUTPUT = "input", "logits"


def export_float(model: nn.Module, path: Path, *, input_shape: tuple[int, int, int]) -> None:
    """Write ``model`` (float) to ``path``: ``input`` float32 [N, C, H, W] -> ``logits`` float32 [N, classes].

    ``input_shape`` is (C, H, W); N is dynamic. BatchNorm is folded. Raises LoweringError.
    """
    graph = to_ir(copy.deepcopy(model).cpu().eval(), input_shape)
    run_passes(graph, [CLEAN, NAME_LAYERS, FOLD_PADS, GLOBAL_AVERAGE_POOL, FOLD_BATCHNORM, CLEAN])
    save(graph, path)


def to_ir(model: nn.Module, input_shape: tuple[int, int, int]) -> ir.Model:
    """Trace ``model`` (eval mode, on the CPU) to an ONNX graph with a dynamic batch; raises LoweringError."""
    # Two pictures: torch.export takes a batch of one for a constant.
    example = torch.zeros((2, *input_shape))
    # The exporter writes attention as its plain products, whose layout in memory only this kernel has: after another,
    # a reshape that needed no copy while tracing cannot be written (MaxViT).
    with _quiet_exporter(), sdpa_kernel(SDPBackend.MATH):
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: written_attention},
                external_data=False,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()
            where = failing_module(error, model)
            raise LoweringError(
                f"{type(model).__name__} cannot be exported to ONNX{f' at {where}' if where else ''}: "
                f"{reason[0] if reason else type(error).__name__}",
                fix=f"write {where or 'it'} without branches on values, NumPy and lists of tensors that grow",
            ) from error
    if program is None:
        raise LoweringError(
            f"{type(model).__name__} cannot be exported to ONNX: the exporter returned nothing",
            fix=f"use torch 2.8 or later; if it is, {REPORT}",
        )
    graph: Any = program.model
    if not isinstance(graph, ir.Model):
        raise LoweringError("torch's ONNX exporter returned an unknown type", fix="use torch 2.8 or later")
    return graph


def save(graph: ir.Model, path: Path) -> None:
    """Write one self-contained file, atomically, after ONNX's own checker accepts it."""
    import onnx

    graph.ir_version = IR_VERSION
    graph.producer_name, graph.producer_version = "edgeopt", None
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(proto.SerializeToString())
    partial.replace(path)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter logs at warning level about things that the passes deal with."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
