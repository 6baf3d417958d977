"""Reads protobuf's wire format: the fields of a message, and their numbers, texts and lists, all within the buffer.

https://protobuf.dev/programming-guides/encoding describes it.
"""

from __future__ import annotations

from collections.abc import Iterator


class MalformedError(Exception):
    """What is read is not protobuf, or not of the message it should be."""


def fields(buffer: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, integer or bytes) of one message."""
    at = 0
    while at < len(buffer):
        key, at = _varint(buffer, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(buffer, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(buffer, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise MalformedError(f"wire type {wire}")
        if size > len(buffer) - at:
            raise MalformedError("a field is longer than the file")
        yield number, buffer[at : at + size]
        at += size


def text(value: int | memoryview) -> str:
    """The value of a string field."""
    if isinstance(value, int):
        raise MalformedError("a name is a number")
    return bytes(value).decode("utf-8", errors="replace")


def integers(value: int | memoryview, most: int) -> list[int]:
    """A repeated integer field, packed or not, as signed 64-bit."""
    found, at = [value] if isinstance(value, int) else [], 0
    while not isinstance(value, int) and at < len(value) and len(found) <= most:
        one, at = _varint(value, at)
        found.append(one)
    if len(found) > most:
        raise MalformedError("a list is longer than any of its kind")
    return [one - (1 << 64) if one >= 1 << 63 else one for one in found]


def _varint(buffer: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(buffer) or shift > 63:
            raise MalformedError("a number is cut off")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
