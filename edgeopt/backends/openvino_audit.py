"""What OpenVINO's plugins tell of a graph they compiled: which layers run in int8, their work, and their times.

The plugins tell differently (read in OpenVINO's sources, 2024.6 to 2026.4; only the CPU's was run here). The CPU's
lists every executed node with its weights. The GPU's leaves constants out of the inputs, so that the work of a layer is
counted in the model, where the layer bears one of the names that were fused into the node. The NPU's names no layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeopt.backends.audit import TIMED_RUNS, ComputeLayer, conv_macs, fusion_report, layer_times, matmul_macs
from edgeopt.backends.base import Float32, FusionReport, LayerTimes, UInt8

_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
_PRODUCTS = frozenset({"FullyConnected", "MatMul", "Gemm"})  # the GPU's plugin calls the last so
_HIDDEN = frozenset({"Deconvolution", "RNNSeq", "MHA", "ScaledDotProductAttention"})  # their work cannot be read
_INT8 = frozenset({"i8", "u8"})


def audit(compiled: Any, model: Any, batch: int) -> FusionReport | None:
    """The precision of every compute layer of ``compiled`` (an ``openvino.CompiledModel``); None where it names none.

    ``model`` is the ``openvino.Model`` it was compiled from, for ``batch`` pictures.
    """
    macs = None if _on_cpu(compiled) else _macs_by_name(model)
    layers = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        information = node.get_rt_info()
        kind = _told(information, "layerType")
        if kind in _CONVOLUTIONS | _PRODUCTS | _HIDDEN:
            if macs is None:
                work = _macs(kind, *_shapes(node))
            else:
                names = [node.get_friendly_name(), *_told(information, "originalLayersNames").split(",")]
                work = next((macs[name] for name in names if name in macs), None)
            int8 = _told(information, "runtimePrecision") in _INT8
            layers.append(ComputeLayer(node.get_friendly_name(), int8, None if work is None else work // batch))
    source = "runtimePrecision of the compiled model's layers (get_runtime_model)"
    return fusion_report("openvino", layers, source) if layers else None


def times(compiled: Any, pictures: Float32 | UInt8) -> tuple[LayerTimes, dict[str, str]]:
    """The time of every layer by the plugin's own counters; and by layer the names of all that was fused into it.

    ``compiled`` has its counters on (``PERF_COUNT``), for as many ``pictures``.
    """
    request = compiled.create_infer_request()
    request.get_input_tensor().data[:] = pictures
    samples = []
    for run in range(1 + TIMED_RUNS):
        request.infer()
        for layer in request.get_profiling_info() if run else ():  # the first run allocates
            if str(layer.status).endswith("EXECUTED"):
                ms = layer.real_time.total_seconds() * 1000
                samples.append((layer.node_name, f"{layer.node_type} ({layer.exec_type})", ms))
    fused = {
        node.get_friendly_name(): _told(node.get_rt_info(), "originalLayersNames")
        for node in compiled.get_runtime_model().get_ordered_ops()
    }
    source = "OpenVINO's performance counters"
    return layer_times(samples, runs=TIMED_RUNS, batch=len(pictures), source=source), fused


def _told(information: Mapping[str, Any], name: str) -> str:
    """An entry of a node's runtime information, empty where the plugin makes none: asking would make it."""
    if name not in information:
        return ""
    return str(getattr(information[name], "value", information[name]))


def _on_cpu(compiled: Any) -> bool:
    return all("CPU" in str(device) for device in compiled.get_property("EXECUTION_DEVICES"))


def _macs_by_name(model: Any) -> dict[str, int]:
    """MACs of every convolution and matrix product of ``model``, by its name."""
    found = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind in _CONVOLUTIONS | _PRODUCTS:
            inputs, output = _shapes(node)
            if kind == "MatMul" and node.get_attributes()["transpose_a"]:
                inputs[0][-1] = inputs[0][-2]
            found[node.get_friendly_name()] = _macs(kind, inputs, output) or 0
    return found


def _shapes(node: Any) -> tuple[list[list[int]], list[int]]:
    return [list(port.get_shape()) for port in node.inputs()], list(node.output(0).get_shape())


def _macs(kind: str, inputs: list[list[int]], output: list[int]) -> int | None:
    """MACs of the whole batch."""
    if kind in _CONVOLUTIONS:
        return conv_macs(output, inputs[1]) if len(inputs) > 1 else None
    if kind in _PRODUCTS:
        return matmul_macs(output, inputs[0]) if inputs else None
    return None
