"""Puts the arithmetic of preprocessing into an ONNX graph: uint8 (N, height, width, 3) in, the same logits out.

The graph gets the cast, the multiplication and the addition of :func:`edgeopt.pixels.normalize`, in their order and in
float32; decoding and resizing stay outside. As written its layers see the very same bits, and do in ONNX Runtime;
OpenVINO fuses the two, which rounds once less.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeopt.backends.onnx_reader import FLOAT, UINT8, OnnxModel, read_onnx
from edgeopt.backends.onnx_writer import field, node, tensor, value_info
from edgeopt.backends.protobuf import fields
from edgeopt.errors import BackendError
from edgeopt.files import write_atomically
from edgeopt.pixels import Preprocessing, normalization

_GRAPH = 7  # ModelProto.graph
_NODE, _INITIALIZER, _INPUT = 1, 5, 11  # of GraphProto


def embed_preprocessing(source: Path, destination: Path, spec: Preprocessing) -> None:
    """Write the classifier ``source``, float32 (N, 3, height, width) in, with ``spec``'s normalization before it.

    Its input is ``pictures``, uint8 (N, height, width, 3), prepared as ``spec`` says but for the normalization. Raises
    BackendError when ``source`` has another input.
    """
    model = read_onnx(source)  # refuses external data
    name, batch = _input(source, model, spec)
    head = _nodes(model, name, batch, spec)
    # Fields may come in any order; nodes must stand before those that read them, so that the new ones come first.
    parts = []
    for number, value in fields(memoryview(source.read_bytes())):
        content = value if isinstance(value, int) else bytes(value)
        parts.append(field(number, content if number != _GRAPH else head + _without_input(value)))
    write_atomically(destination, lambda path: path.write_bytes(b"".join(parts)))


def _input(source: Path, model: OnnxModel, spec: Preprocessing) -> tuple[str, int | str]:
    """The name of the only input, and its batch: a number, or a text where it may vary."""
    wanted = (3, *spec.size)
    if len(model.inputs) == 1:
        [(name, (dtype, dims))] = model.inputs.items()
        # A size that may vary can be of the picture's.
        if dtype == FLOAT and len(dims) == 4 and all(a in (-1, b) for a, b in zip(dims[1:], wanted, strict=True)):
            return name, dims[0] if dims[0] > 0 else "N"
    raise BackendError(
        f"{source.name} has another input than float32 pictures (N, {', '.join(map(str, wanted))})",
        fix="leave --embed-preprocessing out",
    )


def _nodes(model: OnnxModel, name: str, batch: int | str, spec: Preprocessing) -> bytes:
    """Fields of the graph: the new input, constants and nodes, the last of which makes ``name``."""
    taken = {*model.initializers, name, *(one for layer in model.nodes for one in layer.outputs)}

    def free(wanted: str) -> str:
        return wanted if wanted not in taken else free(f"{wanted}_")

    pictures = free("pictures")
    levels, scaled, shifted, scale, offset = (
        free(f"preprocess.{one}") for one in ("cast", "mul", "add", "scale", "offset")
    )
    factors, terms = (np.asarray(one, np.float32) for one in normalization(spec))
    made = [
        node("Cast", [pictures], levels, {"to": FLOAT}),
        node("Mul", [levels, scale], scaled),
        node("Add", [scaled, offset], shifted),
        node("Transpose", [shifted], name, {"perm": (0, 3, 1, 2)}),
    ]
    height, width = spec.size
    return b"".join(
        [
            field(_INPUT, value_info(pictures, UINT8, (batch, height, width, 3))),
            *(field(_INITIALIZER, tensor(*one)) for one in ((scale, factors), (offset, terms))),
            *(field(_NODE, one) for one in made),
        ]
    )


def _without_input(graph: int | memoryview) -> bytes:
    """The fields of ``graph`` but for its inputs: initializers need not be listed among them since IR version 4."""
    assert not isinstance(graph, int)
    kept = ((number, value) for number, value in fields(graph) if number != _INPUT)
    return b"".join(field(number, value if isinstance(value, int) else bytes(value)) for number, value in kept)
