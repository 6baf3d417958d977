"""What ONNX Runtime's own profile tells of a graph it ran: which layers in int8, where, and their times."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeopt.backends.audit import TIMED_RUNS, ComputeLayer, conv_macs, fusion_report, layer_times, matmul_macs
from edgeopt.backends.base import Float32, FusionReport, LayerTimes, UInt8
from edgeopt.backends.onnx_reader import OnnxNode, read_onnx
from edgeopt.backends.onnxruntime_session import CPU, CUDA, UPGRADE, exact, load, refused
from edgeopt.errors import BackendError

#: Executed operators that are compute layers; the runtime's own fused ones included.
_INT8_CONVS = frozenset({"QLinearConv", "ConvInteger", "QLinearConvTranspose"})
_INT8_MATMULS = frozenset(
    {"QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention"}
)
_FLOAT_CONVS = frozenset({"Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvTranspose"})
_FLOAT_MATMULS = frozenset(
    {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "TransposeMatMul", "Attention", "MultiHeadAttention", "Einsum"}
)
#: What ONNX Runtime adds to the name of the tensor that a convolution in its own layout gives.
_BLOCKED = "_nchwc"


@dataclass(frozen=True)
class Executed:
    """What a run went through: the audit, None of a provider that names no layers; compute layers ``on_cpu``."""

    fusion: FusionReport | None
    on_cpu: tuple[str, ...] = ()  # though another provider was asked for


def executed(
    engine: Path, provider: str, picture: Float32 | UInt8, options: Mapping[str, str] | None = None
) -> Executed:
    """The operators that ``picture``, a batch of one as the engine takes it, runs through, and where.

    ``options`` are entries of the session's configuration; None: those that ``OnnxRuntimeBackend`` opens it with.
    Raises BackendError when ``provider`` runs none of them: ONNX Runtime gives what a provider does not take to the
    CPU, and still calls the session that provider's.
    """
    entries = exact(engine) if options is None else options
    # Packed weights vanish from a node's listed inputs, and their shapes are needed to count MACs.
    entries = {"session.disable_prepacking": "1", **entries}
    kernels = [event for event in _profile(engine, provider, 1, picture, 1, entries) if _is_kernel(event)]
    places = [str(event["args"].get("provider", CPU)) for event in kernels]
    if provider not in places:
        raise BackendError(
            f"{provider} takes no layer of {engine.name}: ONNX Runtime would run all of it on the CPU",
            fix=f"choose session.provider = {CPU!r}, or one that takes them",
        )
    layers = _executed_layers(kernels, _Names(engine))
    on_cpu = [layer.name for layer, place in layers if place == CPU != provider]
    if not {CPU, CUDA}.issuperset(places):  # it makes kernels of its own, which say nothing of their layers
        return Executed(None, tuple(on_cpu))
    source = "operators in ONNX Runtime's own profile of one run"
    return Executed(fusion_report("onnxruntime", (layer for layer, _ in layers), source), tuple(on_cpu))


def audit(
    engine: Path, provider: str, picture: Float32 | UInt8, options: Mapping[str, str] | None = None
) -> FusionReport | None:
    """The :class:`FusionReport` of :func:`executed`."""
    return executed(engine, provider, picture, options).fusion


def times(engine: Path, provider: str, threads: int, batch: Float32 | UInt8) -> LayerTimes:
    """The time of every operator, as the engine will run; the first run, which allocates, left out."""
    events = _profile(engine, provider, threads, batch, 1 + TIMED_RUNS, exact(engine))
    nodes = [event for event in events if _is_kernel(event)]
    each, names = len(nodes) // (1 + TIMED_RUNS), _Names(engine)
    return layer_times(
        ((names.of(event), str(event["args"].get("op_name", "")), event["dur"] / 1000) for event in nodes[each:]),
        runs=TIMED_RUNS,
        batch=len(batch),
        source="ONNX Runtime's own profile",
    )


def _profile(
    engine: Path, provider: str, threads: int, batch: Float32 | UInt8, calls: int, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The events of ONNX Runtime's profile of ``calls`` runs."""
    with tempfile.TemporaryDirectory(dir=engine.parent, prefix="profile-") as folder:
        switched_on = {"enable_profiling": True, "profile_file_prefix": str(Path(folder) / "run")}
        session = load(engine, provider, threads, {**switched_on, **options})
        try:
            for _ in range(calls):
                session.run(None, {session.get_inputs()[0].name: batch})
        except Exception as error:
            raise refused(f"running pictures {batch.shape}", error, UPGRADE) from error
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def _is_kernel(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time")


class _Names:
    """What the file calls the nodes that ONNX Runtime ran.

    A float convolution for the vectors of this CPU is named after the tensor that it gives, which is that of the
    activation fused with it: ``relu_9_nchwc`` is the layer that ``relu_9`` is made of.
    """

    def __init__(self, engine: Path) -> None:
        self._engine = engine

    @cached_property
    def _makers(self) -> dict[str, OnnxNode]:
        """Read where a name needs it: in most int8 engines none does."""
        return {output: node for node in read_onnx(self._engine).nodes for output in node.outputs}

    def of(self, event: Mapping[str, Any]) -> str:
        operator = str(event["args"].get("op_name", ""))
        name = str(event["name"]).removesuffix("_kernel_time") or operator
        blocked = operator in _FLOAT_CONVS and name.endswith(_BLOCKED)
        maker = self._makers.get(name.removesuffix(_BLOCKED)) if blocked else None
        while maker is not None and maker.op_type not in _FLOAT_CONVS and maker.inputs:
            maker = self._makers.get(maker.inputs[0])
        return maker.name if maker is not None and maker.name else name


def _executed_layers(kernels: list[dict[str, Any]], names: _Names) -> list[tuple[ComputeLayer, str]]:
    """The compute layers among the executed operators, and the provider that ran each."""
    layers = []
    for event in kernels:
        arguments = event["args"]
        operator = arguments.get("op_name", "")
        int8 = operator in _INT8_CONVS or operator in _INT8_MATMULS
        if int8 or operator in _FLOAT_CONVS or operator in _FLOAT_MATMULS:
            layer = ComputeLayer(names.of(event), int8, _macs(operator, arguments))
            layers.append((layer, str(arguments.get("provider", CPU))))
    return layers


def _macs(operator: str, arguments: Mapping[str, Any]) -> int | None:
    """MACs from the shapes the profiler lists; attention and einsum hide theirs."""
    try:
        inputs = [next(iter(item.values())) for item in arguments["input_type_shape"]]
        output = next(iter(arguments["output_type_shape"][0].values()))
    except (KeyError, IndexError, StopIteration):
        return None
    if operator in _INT8_CONVS or operator in _FLOAT_CONVS:
        weights = [dims for dims in inputs[1:] if len(dims) == len(output)]
        if "Transpose" in operator:  # its weight is (in, out / groups, *kernel), applied once for each input element
            return conv_macs(inputs[0], weights[0]) if weights else None
        return conv_macs(output, weights[0]) if weights else None
    if operator in ("QAttention", "Attention", "MultiHeadAttention", "Einsum") or not inputs:
        return None
    return matmul_macs(output, inputs[0])
