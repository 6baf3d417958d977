"""A small mutator: bytes of a seed damaged at random, or tokens of its kind put in the place of others."""

from __future__ import annotations

import json
import random
import re
from typing import Any

_TOML_VALUE = re.compile(rb"(?<== )[^\n]+")
TOML_TOKENS = (
    b"nan", b"-inf", b"1e400", b"9" * 5000, b"0x" + b"f" * 300, b"-1", b"0", b"true", b'""', b"[]", b"{}", b"[[]]",
    b'"\\u0000"', b'"../../etc/passwd"', b'"/etc/passwd"', b'"' + b"x" * 70_000 + b'"', b"1979-05-27T07:32:00Z",
    b"[" * 2000, b"{a={" * 400, b'"\\U0010ffff"', b"'''", b'["", 1, nan]', b"{ a = 1 }", b"0.0", b"1e-320",
)  # fmt: skip
JSON_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 0.5, 1e308, 5e-324, float("nan"), float("inf"), 10**400, 2**63, "", "..", "/etc/passwd",
    "../../etc/passwd", "a\0b", "\ud800", "\x1b[2J", "x" * 70_000, [], {}, [[]], [{}], {"": {}}, ["a"], [0.1, 0.2],
    "float", "int8", "pytorch", "tensorrt", "onnxruntime", "engine.onnx", "original", "test", "0" * 64,
)  # fmt: skip


def mutated(seed: bytes, kind: str, rng: random.Random) -> bytes:
    """``seed`` with one to four changes; ``kind`` is ``json``, ``toml`` or ``binary``."""
    if kind == "json" and rng.random() < 0.8:
        return _json(seed, rng)
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        if kind == "toml" and rng.random() < 0.7:
            data = bytearray(_toml(bytes(data), rng))
        else:
            _damage(data, rng)
    return bytes(data)


def _damage(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    act = rng.randrange(6)
    if act == 0 and data:
        data[at % len(data)] = rng.randrange(256)
    elif act == 1 and data:
        data[at % len(data)] ^= 1 << rng.randrange(8)
    elif act == 2:
        del data[at : at + rng.choice((1, 2, 8, 64, 1000))]
    elif act == 3:
        data[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
    elif act == 4:
        begin = rng.randrange(len(data) + 1)
        data[at:at] = data[begin : begin + rng.choice((4, 32, 200))]
    else:  # the numbers that lengths and sizes break at
        data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))


def _toml(data: bytes, rng: random.Random) -> bytes:
    places = list(_TOML_VALUE.finditer(data))
    if not places:
        return data
    place = rng.choice(places)
    return data[: place.start()] + rng.choice(TOML_TOKENS) + data[place.end() :]


def _json(seed: bytes, rng: random.Random) -> bytes:
    try:
        record = json.loads(seed)
    except (ValueError, RecursionError):
        return seed[: rng.randrange(len(seed) + 1)]
    for _ in range(rng.randint(1, 3)):
        record = _planted(record, rng)
    return json.dumps(record).encode()


def _planted(value: Any, rng: random.Random) -> Any:
    """``value`` with something hostile somewhere in it; the deeper, the likelier it is to be reached."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {other: one for other, one in value.items() if other != key}
        return {**value, key: _planted(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:at] + value[at + 1 :]
        return [*value[:at], _planted(value[at], rng), *value[at + 1 :]]
    if isinstance(value, (int, float)) and abs(value) < 1e100 and type(value) is not bool and rng.random() < 0.3:
        return value * rng.choice((-1, 1e-9, 1e9, 1e100, 1000))
    return rng.choice(JSON_VALUES)
