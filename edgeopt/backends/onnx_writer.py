"""Writes parts of ONNX files in the protobuf wire format: a device has no onnx package.

Every function gives the bytes of one message. Field numbers are those of onnx.proto3;
https://protobuf.dev/programming-guides/encoding describes the encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.backends.onnx_reader import FLOAT, UINT8

_FLOAT, _INT, _INTS = 1, 2, 7  # AttributeProto.AttributeType
_FIXED_32 = 5  # a wire type
_TYPES: dict[str, tuple[int, str]] = {"float32": (FLOAT, "<f4"), "uint8": (UINT8, "u1")}


def field(number: int, content: bytes | int | str) -> bytes:
    """One field of a message: a non-negative integer, or the bytes of a text or message."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    data = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def node(
    op_type: str,
    inputs: Sequence[str],
    output: str,
    attributes: Mapping[str, int | float | Sequence[int]] | None = None,
) -> bytes:
    """A NodeProto with one output, named after it; ``attributes`` are floats, or non-negative integers or lists of
    them."""
    parts = [field(1, name) for name in inputs] + [field(2, output), field(3, output), field(4, op_type)]
    for name, value in (attributes or {}).items():
        if isinstance(value, int):
            attribute = field(1, name) + field(3, value) + field(20, _INT)
        elif isinstance(value, float):
            attribute = field(1, name) + _varint(2 << 3 | _FIXED_32) + struct.pack("<f", value) + field(20, _FLOAT)
        else:
            attribute = field(1, name) + b"".join(field(8, one) for one in value) + field(20, _INTS)
        parts.append(field(5, attribute))
    return b"".join(parts)


def tensor(name: str, values: npt.NDArray[np.float32] | npt.NDArray[np.uint8]) -> bytes:
    """A TensorProto of float32 or uint8."""
    kind, stored = _TYPES[values.dtype.name]
    dims = b"".join(field(1, size) for size in values.shape)
    return dims + field(2, kind) + field(8, name) + field(9, values.astype(stored).tobytes())


def value_info(name: str, dtype: int, dims: Sequence[int | str] | None = None) -> bytes:
    """A ValueInfoProto: a tensor of the TensorProto type ``dtype``; a text in ``dims`` names a size that may vary."""
    kind = field(1, dtype)
    if dims is not None:
        kind += field(2, b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in dims))
    return field(1, name) + field(2, field(1, kind))


def _varint(value: Any) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
