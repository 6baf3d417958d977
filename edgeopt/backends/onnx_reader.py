"""Reads an ONNX file without the onnx package: nodes, initializers and inputs, from the protobuf wire format.

The device half has no onnx. Two questions need the file itself: does it stay within itself (a run folder may come from
a stranger, and external data may name any path), and are its zero points what the scheme says. Field numbers are
those of onnx.proto3. Everything is bounded: lengths by the buffer, nesting by ``_MAX_DEPTH``, the file by protobuf's
own 2 GiB, and what is kept of it in Python's objects, which are a hundred times the size of two bytes in the file, by
``_MAX_NAMES`` and ``_MAX_DIMS``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeopt.backends.protobuf import MalformedError, fields, integers, text
from edgeopt.errors import BackendError
from edgeopt.files import printable

FLOAT, UINT8, INT8, INT32, FLOAT16 = 1, 2, 3, 6, 10  # TensorProto.DataType
COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "QLinearConv", "MatMulInteger"})

_MAX_BYTES = 2**31 - 1
_MAX_DEPTH = 8
_MAX_NAMES = 1_000_000  # of nodes, their inputs and outputs, and tensors together; a large network has ten thousand
_MAX_DIMS = 64
_SMALL = 1 << 16  # bytes of an initializer worth keeping: zero points and scales, not weights
_EXTERNAL = 1  # TensorProto.DataLocation
_FIX = "make it again: edgeopt export --force"
_INTEGERS = {UINT8: np.uint8, INT8: np.int8, INT32: np.int32}


@dataclass(frozen=True)
class OnnxTensor:
    """An initializer. ``small`` holds its bytes when they are integers and few, ``largest`` an int8's magnitude.

    ``number`` is the value of a single float32.
    """

    name: str
    dtype: int
    dims: tuple[int, ...]
    small: bytes | None = None
    largest: int = 0
    number: float | None = None

    def integers(self) -> npt.NDArray[np.integer] | None:
        """Its values, flat, when it is a small integer tensor."""
        kind = _INTEGERS.get(self.dtype)
        if self.small is None or kind is None or len(self.small) % np.dtype(kind).itemsize:
            return None
        return np.frombuffer(self.small, dtype=kind)


@dataclass(frozen=True)
class OnnxNode:
    """A node of the top graph."""

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class OnnxModel:
    """What is needed of a model. ``inputs`` and ``output_kinds`` map names to (data type, dims), -1 where symbolic.

    ``inputs`` are the true ones, without initializers, which Constants are counted among; ``opsets`` maps operator
    domains to versions, "" for ONNX's own.
    """

    nodes: list[OnnxNode] = field(default_factory=list)
    initializers: dict[str, OnnxTensor] = field(default_factory=dict)
    inputs: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    output_kinds: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)
    names: int = 0  # kept so far

    def weights_need_8_bits(self) -> bool:
        """Whether an int8 initializer goes beyond the 7 bits that keep sums of two u8*s8 products inside int16."""
        return any(tensor.largest > 63 for tensor in self.initializers.values())

    def compute_nodes(self) -> list[OnnxNode]:
        """Convolutions, gemms and matmuls."""
        return [node for node in self.nodes if node.op_type in COMPUTE_OPS]


def read_onnx(path: Path, *, fix: str = _FIX) -> OnnxModel:
    """The model in ``path``; raises BackendError when it is not an ONNX model or keeps data in other files.

    ``fix`` is what the error says of a file that cannot be read: by default how edgeopt makes its own anew.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BackendError(f"{path} is larger than an ONNX file can be (2 GiB)", fix=fix)
        buffer = memoryview(path.read_bytes())
    except OSError as error:
        raise BackendError(f"cannot read {path}: {error}", fix=fix) from None
    model = OnnxModel()
    graphs = 0
    try:
        for number, value in fields(buffer):
            if number == 7 and isinstance(value, memoryview):
                graphs += 1
                _graph(value, model, depth=0)
            elif number == 8 and isinstance(value, memoryview):
                _opset(value, model)
            elif number == 25 and isinstance(value, memoryview):  # a function: only its tensors' location matters
                _scan_nodes(value, 7, depth=0)
    except MalformedError as error:
        raise BackendError(f"{path} is not a readable ONNX model: {error}", fix=fix) from None
    except _ExternalError as error:
        raise BackendError(
            f"{path} keeps the tensor {error} in another file, which edgeopt refuses",
            fix="export it in one file (external_data=False)",
        ) from None
    if graphs != 1 or not model.nodes:
        raise BackendError(f"{path} is not a readable ONNX model: it has no graph", fix=fix)
    model.inputs = {name: kind for name, kind in model.inputs.items() if name not in model.initializers}
    return model


class _ExternalError(Exception):
    pass


def _opset(buffer: memoryview, model: OnnxModel) -> None:
    domain, version = "", 0
    for number, value in fields(buffer):
        if number == 1:
            domain = text(value)
        elif number == 2 and isinstance(value, int):
            version = value
    model.opsets["" if domain == "ai.onnx" else domain] = version
    _count(model, 1)


def _graph(buffer: memoryview, model: OnnxModel, *, depth: int) -> None:
    for number, value in fields(buffer):
        if isinstance(value, int):
            continue
        if number == 1:
            node, constant = _node(value, depth)
            model.nodes.append(node)
            # As exporters of old write weights.
            if constant is not None and node.op_type == "Constant" and node.outputs:
                model.initializers[node.outputs[0]] = replace(constant, name=node.outputs[0])
            _count(model, 1 + len(node.inputs) + len(node.outputs))
        elif number == 5:
            tensor = _tensor(value)
            model.initializers[tensor.name] = tensor
            _count(model, 1)
        elif number == 15:
            _sparse(value)
        elif number == 11:
            name, dtype, dims = _value_info(value)
            model.inputs[name] = (dtype, dims)
            _count(model, 1)
        elif number == 12:
            name, dtype, dims = _value_info(value)
            model.outputs.append(name)
            model.output_kinds[name] = (dtype, dims)
            _count(model, 1)


def _count(model: OnnxModel, names: int) -> None:
    model.names += names
    if model.names > _MAX_NAMES:
        raise MalformedError("it has more nodes than any network")


def _node(buffer: memoryview, depth: int) -> tuple[OnnxNode, OnnxTensor | None]:
    """A node, and the tensor that an attribute of it holds: the value, of a Constant."""
    inputs: list[str] = []
    outputs: list[str] = []
    texts = {3: "", 4: "", 7: ""}
    held: OnnxTensor | None = None
    for number, value in fields(buffer):
        if number in (1, 2):
            (inputs if number == 1 else outputs).append(text(value))
            if len(inputs) + len(outputs) > _MAX_NAMES:
                raise MalformedError("a node has more inputs than any")
        elif number in texts:
            texts[number] = text(value)
        elif number == 5 and isinstance(value, memoryview):
            held = _scan_attribute(value, depth) or held
    node = OnnxNode(texts[3], texts[4], texts[7], tuple(inputs), tuple(outputs))
    return node, held


def _scan_nodes(buffer: memoryview, node_field: int, *, depth: int) -> None:
    for number, value in fields(buffer):
        if number == node_field and isinstance(value, memoryview):
            _node(value, depth)


def _scan_attribute(buffer: memoryview, depth: int) -> OnnxTensor | None:
    """Looks for external data in an attribute's tensors and subgraphs; gives its last tensor."""
    held: OnnxTensor | None = None
    if depth > _MAX_DEPTH:
        raise MalformedError("graphs are nested too deeply")
    for number, value in fields(buffer):
        if isinstance(value, int):
            continue
        if number in (5, 10):
            held = _tensor(value)
        elif number in (6, 11):
            _graph(value, OnnxModel(), depth=depth + 1)
        elif number in (22, 23):
            _sparse(value)
    return held


def _sparse(buffer: memoryview) -> None:
    for number, value in fields(buffer):
        if number in (1, 2) and isinstance(value, memoryview):
            _tensor(value)


def _tensor(buffer: memoryview) -> OnnxTensor:
    dims: list[int] = []
    name, dtype = "", 0
    raw: memoryview | None = None
    listed: list[int] = []
    too_long = False
    for number, value in fields(buffer):
        if number == 1:
            dims += integers(value, _MAX_DIMS - len(dims))
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 4 and isinstance(value, memoryview):
            raw = value  # float32, listed: the same bytes
        elif number == 5:
            too_long = too_long or (0 if isinstance(value, int) else len(value)) > _SMALL or len(listed) > _SMALL
            listed += [] if too_long else integers(value, _SMALL)
        elif number == 8:
            name = text(value)
        elif number == 9 and isinstance(value, memoryview):
            raw = value
    if any(number == 13 or (number == 14 and value == _EXTERNAL) for number, value in fields(buffer)):
        raise _ExternalError(f'"{printable(name)[:100]}"')
    if too_long:  # of weights that are listed, which nobody does, the worst is assumed
        return OnnxTensor(name, dtype, tuple(dims), None, 128 if dtype == INT8 else 0)
    worth = float(np.frombuffer(raw, "<f4")[0]) if dtype == FLOAT and raw is not None and len(raw) == 4 else None
    return OnnxTensor(name, dtype, tuple(dims), _small(dtype, raw, listed), _largest(dtype, raw, listed), worth)


def _small(dtype: int, raw: memoryview | None, listed: list[int]) -> bytes | None:
    """The bytes of a small integer tensor, stored raw or listed."""
    kind = _INTEGERS.get(dtype)
    if kind is None:
        return None
    if raw is not None:
        return bytes(raw) if len(raw) <= _SMALL else None
    # An int8 -1 is listed as a 64-bit -1, a uint8 200 as 200: both wrap to the right byte.
    return np.asarray(listed, dtype=np.int64).astype(kind).tobytes() if listed else None


def _largest(dtype: int, raw: memoryview | None, listed: list[int]) -> int:
    """The largest magnitude in an int8 tensor, 0 for another."""
    if dtype != INT8:
        return 0
    values = np.asarray(listed, np.int64).astype(np.int8) if raw is None else np.frombuffer(raw, np.int8)
    return max(-int(values.min()), int(values.max())) if values.size else 0


def _value_info(buffer: memoryview) -> tuple[str, int, tuple[int, ...]]:
    name, dtype = "", 0
    dims: list[int] = []
    for number, value in fields(buffer):
        if number == 1:
            name = text(value)
        elif number == 2 and isinstance(value, memoryview):
            for kind, tensor in fields(value):
                if kind == 1 and isinstance(tensor, memoryview):
                    dtype, dims = _tensor_type(tensor)
    return name, dtype, tuple(dims)


def _tensor_type(buffer: memoryview) -> tuple[int, list[int]]:
    dtype = 0
    dims: list[int] = []
    for number, value in fields(buffer):
        if number == 1 and isinstance(value, int):
            dtype = value
        elif number == 2 and isinstance(value, memoryview):
            for kind, dim in fields(value):
                if len(dims) > _MAX_DIMS:
                    raise MalformedError("a tensor has more dimensions than any")
                if kind == 1 and isinstance(dim, memoryview):
                    stated = [one for which, one in fields(dim) if which == 1 and isinstance(one, int)]
                    dims.append(stated[0] if stated else -1)
    return dtype, dims
