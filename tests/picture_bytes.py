"""Picture files made byte by byte: what no library writes, or refuses to."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

from PIL import Image


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    size: tuple[int, int], depth: int, colour: int, rows: Iterable[bytes], *, before: bytes = b"", level: int = -1
) -> bytes:
    """A PNG file: ``colour`` 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA; ``before`` are chunks before IDAT."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    data = zlib.compress(b"".join(b"\0" + row for row in rows), level)
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """What Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def declaring(jpeg: bytes, size: tuple[int, int]) -> bytes:
    """A JPEG file whose header says another size."""
    start = min(found for marker in (b"\xff\xc0", b"\xff\xc2") if (found := jpeg.find(marker)) >= 0)
    return jpeg[: start + 5] + struct.pack(">HH", size[1], size[0]) + jpeg[start + 9 :]
