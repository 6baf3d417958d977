"""TensorRT's own table of the layers it built, from the engine inspector or a build log, and its audit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from edgeopt.backends.audit import ComputeLayer, conv_macs, fusion_report
from edgeopt.backends.base import FusionReport
from edgeopt.backends.onnx_reader import OnnxModel, OnnxNode
from edgeopt.errors import REPORT, BackendError

#: Layer types that convolve or multiply matrices: TensorRT's Cask* and Myelin's correlation, gemm and gemv.
_COMPUTE = re.compile(r"conv|correlation|gemm|gemv|matmul|matrixmultiply|fullyconnected", re.IGNORECASE)
_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), (?P<rest>.*)$")
_SECTION = re.compile(r"(Inputs|Constants|Outputs): \[(.*?)\](?=, (?:Constants|Outputs|TacticName): ?|$)")
_DTYPE = re.compile(r"Datatype: (\w+)")
_DIMS = re.compile(r"Dimensions: \[([^\]]*)\]")
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
#: How the inspector of TensorRT 10 words a tensor: "Thirty-two wide channel vectorized row major Int8 format".
_WORDED = re.compile(r"\b(Int8|FP32|FP16|BF16|Float|Half|BFloat16|Int32|Int64|FP8|Bool)\b", re.IGNORECASE)


@dataclass(frozen=True)
class TrtLayer:
    """One row: data types and dimensions of its inputs, constants and outputs, and the ONNX nodes it came from."""

    name: str
    kind: str
    input_types: tuple[str, ...]
    constant_types: tuple[str, ...]
    output_dims: tuple[tuple[int, ...], ...]
    onnx_nodes: tuple[str, ...]

    @property
    def compute(self) -> bool:
        """Whether it is a convolution or a matrix product."""
        return bool(_COMPUTE.search(self.kind))

    @property
    def int8(self) -> bool:
        """Whether its activations arrive as int8, which decides the kernel."""
        return bool(self.input_types) and self.input_types[0].lower() == "int8"


def from_log(lines: Iterable[str]) -> list[TrtLayer]:
    """The last layer table in a VERBOSE build log; raises BackendError when there is none."""
    found: list[TrtLayer] = []
    for message in lines:
        rows = [_LINE.match(line) for line in message.splitlines()]
        table = [_from_line(row) for row in rows if row]
        if table:
            found = table
    if not found:
        raise BackendError(
            "the build log holds no layer table, so the engine cannot be audited",
            fix=f"this TensorRT-RTX words its log another way: {REPORT}",
        )
    return found


def _from_line(row: re.Match[str]) -> TrtLayer:
    sections = {name: text for name, text in _SECTION.findall(row["rest"])}
    outputs = tuple(
        tuple(int(dim) for dim in dims.split(",") if dim.strip()) for dims in _DIMS.findall(sections.get("Outputs", ""))
    )
    return TrtLayer(
        name=row["name"],
        kind=row["kind"],
        input_types=tuple(_DTYPE.findall(sections.get("Inputs", ""))),
        constant_types=tuple(_DTYPE.findall(sections.get("Constants", ""))),
        output_dims=outputs,
        onnx_nodes=tuple(_ONNX.findall(row["rest"])),
    )


def from_inspector(text: str) -> list[TrtLayer]:
    """The layers in ``get_engine_information(JSON)`` of TensorRT 10 ("Format/Datatype") or 11 ("Datatype").

    Raises BackendError when the engine was built without ProfilingVerbosity.DETAILED.
    """
    try:
        rows = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(
            f"the engine inspector's answer cannot be read ({error})",
            fix=f"this TensorRT words it another way than 10 and 11 do: {REPORT}",
        ) from None
    if any(not isinstance(row, dict) for row in rows):
        raise BackendError(
            "the engine was built without detailed layer information, so it cannot be audited",
            fix="build it with edgeopt, or with profiling_verbosity = ProfilingVerbosity.DETAILED",
        )
    return [_from_row(row) for row in rows]


def _from_row(row: dict[str, Any]) -> TrtLayer:
    weights = row.get("Weights") or {}
    constants = tuple(_dtype(item) for item in row.get("Constants", ()))
    return TrtLayer(
        name=str(row.get("Name", "")),
        kind=str(row.get("LayerType", "")),
        input_types=tuple(_dtype(item) for item in row.get("Inputs", ())),
        constant_types=constants or ((str(weights["Type"]),) if "Type" in weights else ()),
        output_dims=tuple(tuple(int(dim) for dim in item.get("Dimensions", ())) for item in row.get("Outputs", ())),
        onnx_nodes=tuple(_ONNX.findall(str(row.get("Metadata", "")))),
    )


def _dtype(item: dict[str, Any]) -> str:
    stated = item.get("Datatype") or item.get("DataType")
    if stated:
        return str(stated)
    worded = _WORDED.findall(str(item.get("Format/Datatype", "")))
    return str(worded[-1]) if worded else "unknown"


def audit(backend: str, layers: Sequence[TrtLayer], model: OnnxModel, source: str) -> FusionReport:
    """The report over every convolution, gemm and matmul of the ONNX ``model``, found again in the table by name.

    One that no compute row owns (fused into another kernel) counts as float: the denominator is the model's.
    MACs come from the ONNX weights, since the table's are padded.
    """
    rows = [layer for layer in layers if layer.compute]
    nodes = model.compute_nodes()
    owners = [_owner(node, rows) for node in nodes]
    if not any(owners):  # another naming: the rows themselves are the best denominator there is
        return fusion_report(backend, (ComputeLayer(row.name, row.int8) for row in rows), source)
    found = [
        ComputeLayer(_name(node), owner is not None and owner.int8, _macs(node, owner, model))
        for node, owner in zip(nodes, owners, strict=True)
    ]
    return fusion_report(backend, found, source)


def to_json(layers: Sequence[TrtLayer], **labels: Any) -> dict[str, Any]:
    """As written to ``layers.json``."""
    return {"schema": 1, **labels, "layers": [{**asdict(layer), "int8": layer.int8} for layer in layers]}


def _name(node: OnnxNode) -> str:
    """The name TensorRT's parser gives a node."""
    return node.name or (f"node_of_{node.outputs[0]}" if node.outputs else "")


def _owner(node: OnnxNode, rows: Sequence[TrtLayer]) -> TrtLayer | None:
    name = _name(node)
    for row in rows:
        own = re.sub(r"_myl\d+_\d+$", "", row.name)
        if own == name or name in own.split(" + "):
            return row
    return next((row for row in rows if name in row.onnx_nodes), None)


def _macs(node: OnnxNode, owner: TrtLayer | None, model: OnnxModel) -> int | None:
    """MACs of one picture: the table's output size times the ONNX weights behind one output."""
    weight = _weight_dims(node, model)
    if weight is None:
        return None
    if node.op_type == "Gemm":
        return prod(weight)
    if node.op_type in ("MatMul", "MatMulInteger"):
        # Of (N, tokens, features) every token is a row; the table may have split the features into heads.
        made = prod(owner.output_dims[0][1:]) if owner is not None and owner.output_dims else 0
        return made // weight[-1] * prod(weight) if made > 0 and made % weight[-1] == 0 else None
    if node.op_type != "Conv" or owner is None or not owner.output_dims:
        return None
    return conv_macs([1, weight[0], *owner.output_dims[0][2:]], weight)


def _weight_dims(node: OnnxNode, model: OnnxModel) -> tuple[int, ...] | None:
    """Dims of the initializer behind the second input, through DequantizeLinear, Cast and Transpose."""
    if len(node.inputs) < 2:
        return None
    makers = {output: maker for maker in model.nodes for output in maker.outputs}
    name = node.inputs[1]
    for _ in range(4):
        if name in model.initializers:
            return model.initializers[name].dims
        maker = makers.get(name)
        if maker is None or maker.op_type not in ("DequantizeLinear", "Cast", "Identity") or not maker.inputs:
            return None
        name = maker.inputs[0]
    return None
