"""Int8 gates for ONNX Runtime: the product in swish and hard-swish, which it has in int8 only between int8 factors.

x * sigmoid(x) between quantizers runs as a dequantized map, a float product and a quantized one, in another layout than
the convolutions around it: MobileNetV3's int8 engine was slower than its float one. A gate is a number from 0 to 1, so
its quantizer needs no calibration: in uint8 codes of 1/255 it moves the product by 0.2 % of x at most, half a code of a
quantizer as wide as x. Where the product's is much narrower, as when all gates of an excitation are small, those would
be many codes, and the gate is left in float. The gate of hard-swish, x / 6 + 0.5 cut off at 0 and 1, is then an int8
addition: codes with a sixth of their scale, and a half; codes of 1/255 end at 0 and 1 by themselves. Other runtimes
fuse the activation whole and must not get these.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from edgeopt.backends.onnx_reader import UINT8, OnnxModel, OnnxNode, read_onnx
from edgeopt.backends.onnx_writer import field, node, tensor
from edgeopt.backends.protobuf import fields
from edgeopt.files import write_atomically

_GRAPH = 7  # ModelProto.graph
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_OUTPUT = 2  # of NodeProto
_GATES = frozenset({"Sigmoid", "HardSigmoid"})  # whose values are from 0 to 1
_NARROWER = 4.0  # times that the product's codes may be finer than x's: two of them are lost then, at the ends
# A model may have a module called gate, whose parameters are called so in the file.
_SCALE, _ZERO_POINT = "edgeopt:gate.scale", "edgeopt:gate.zero_point"
_HALF, _HALF_CODES = "edgeopt:gate.half.scale", "edgeopt:gate.half.codes"  # code 1 of the scale 0.5


def quantize_gates(source: Path, destination: Path) -> int:
    """Write the QDQ classifier ``source`` with quantizers behind the gates of int8 products; how many there are.

    They are those whose product has an int8 map of uint8 codes as its other factor, and a quantizer behind it that is
    not much narrower than that map's. Every tensor keeps its name but for a gate's before its quantizer. Raises
    BackendError for what is no ONNX model.
    """
    model = read_onnx(source)  # refuses external data
    graph = _Graph(model)
    made = 0
    constants = list(_constants())

    def written(position: int, layer: memoryview) -> bytes:
        nonlocal made
        found = model.nodes[position]
        if found.op_type == "HardSwish" and graph.is_int8_between(found):
            made += 1
            nodes, sixth = graph.hard_swish(found)
            constants.append(sixth)
            return b"".join(field(_NODE, one) for one in nodes)
        if found.op_type in _GATES and graph.gates_int8(found):
            made += 1
            (gate_name,) = found.outputs
            renamed = b"".join(
                field(number, f"{gate_name}.float" if number == _OUTPUT else _content(value))
                for number, value in fields(layer)
            )
            return b"".join(field(_NODE, one) for one in (renamed, *_rounded(gate_name)))
        return field(_NODE, bytes(layer))

    parts = []
    for number, value in fields(memoryview(source.read_bytes())):
        if number == _GRAPH and isinstance(value, memoryview):
            content, position = [], 0
            for inner, one in fields(value):
                if inner == _NODE and isinstance(one, memoryview):
                    content.append(written(position, one))
                    position += 1
                else:
                    content.append(field(inner, _content(one)))
            if made:
                content += [field(_INITIALIZER, one) for one in constants]
            parts.append(field(number, b"".join(content)))
        else:
            parts.append(field(number, _content(value)))
    write_atomically(destination, lambda path: path.write_bytes(b"".join(parts)))
    return made


class _Graph:
    """Who makes and who reads each tensor."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._maker = {name: one for one in model.nodes for name in one.outputs}
        self._readers: dict[str, list[OnnxNode]] = defaultdict(list)
        for one in model.nodes:
            for name in one.inputs:
                self._readers[name].append(one)

    def is_uint8(self, name: str) -> bool:
        """Whether ``name`` comes of uint8 codes."""
        maker = self._maker.get(name)
        if maker is None or maker.op_type != "DequantizeLinear" or len(maker.inputs) < 3:
            return False
        zero_point = self._model.initializers.get(maker.inputs[2])
        return zero_point is not None and zero_point.dtype == UINT8

    def is_quantized(self, name: str) -> bool:
        """Whether whoever reads ``name`` quantizes it."""
        readers = self._readers[name]
        return bool(readers) and all(one.op_type == "QuantizeLinear" for one in readers)

    def is_wide(self, name: str, product: OnnxNode) -> bool:
        """Whether codes of ``product``, which is quantized, are about as coarse as those of its factor ``name``."""
        scale = self._scale(name)
        made = [self._model.initializers.get(one.inputs[1]) for one in self._readers[product.outputs[0]]]
        return scale is not None and all(
            one is not None and one.number is not None and scale <= _NARROWER * one.number for one in made
        )

    def gates_int8(self, gate: OnnxNode) -> bool:
        """Whether all that ``gate`` is read by are products of int8 maps, quantized in turn."""
        (name,) = gate.outputs
        products = self._readers[name]
        return bool(products) and all(
            one.op_type == "Mul"
            and self.is_quantized(one.outputs[0])
            and any(self.is_uint8(factor) and self.is_wide(factor, one) for factor in one.inputs if factor != name)
            for one in products
        )

    def is_int8_between(self, layer: OnnxNode) -> bool:
        """Whether ``layer`` makes one int8 map of another, whose scale is a constant of the file."""
        (x,), (y,) = layer.inputs, layer.outputs
        return self.is_uint8(x) and self.is_quantized(y) and self.is_wide(x, layer)

    def hard_swish(self, layer: OnnxNode) -> tuple[list[bytes], bytes]:
        """Nodes in place of ``layer``, of a uint8 map, and a constant they need."""
        (x,), (y,) = layer.inputs, layer.outputs
        codes, _, zero_point = self._maker[x].inputs
        gate, sixth, half = f"{y}.gate", f"{y}.gate.sixth", f"{y}.gate.half"
        nodes = [
            node("DequantizeLinear", [codes, f"{sixth}.scale", zero_point], sixth),
            node("DequantizeLinear", [_HALF_CODES, _HALF, _ZERO_POINT], half),
            node("Add", [sixth, half], f"{gate}.float"),
            *_rounded(gate),
            node("Mul", [x, gate], y),
        ]
        return nodes, tensor(f"{sixth}.scale", np.asarray((self._scale(x) or 0.0) / 6, np.float32))

    def _scale(self, name: str) -> float | None:
        """What a code of ``name`` is worth."""
        found = self._model.initializers.get(self._maker[name].inputs[1])
        return found.number if found is not None else None


def _rounded(name: str) -> tuple[bytes, bytes]:
    """Nodes that make ``name`` of ``name.float``, in 255 steps."""
    codes = f"{name}.codes"
    return (
        node("QuantizeLinear", [f"{name}.float", _SCALE, _ZERO_POINT], codes),
        node("DequantizeLinear", [codes, _SCALE, _ZERO_POINT], name),
    )


def _constants() -> tuple[bytes, ...]:
    return (
        tensor(_SCALE, np.asarray(1 / 255, np.float32)),
        tensor(_ZERO_POINT, np.asarray(0, np.uint8)),
        tensor(_HALF, np.asarray(0.5, np.float32)),
        tensor(_HALF_CODES, np.asarray(1, np.uint8)),
    )


def _content(value: int | memoryview) -> int | bytes:
    return value if isinstance(value, int) else bytes(value)
