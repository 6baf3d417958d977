"""Pictures inside the page: small, as data URIs, from the prepared test set of the run."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

SIDE = 112


def thumbnail(pixels: Any) -> str:
    """A JPEG data URI of uint8 (height, width, 3) pixels, at most 112 pixels wide and high."""
    return _uri(_small(pixels), "JPEG")


def heat(pixels: Any, evidence: Any) -> str:
    """The picture in grey with ``evidence``, uint8 (rows, columns), over it in red."""
    small = _small(pixels)
    grey = np.asarray(small.convert("L"), np.float32)[..., None].repeat(3, axis=2)
    share = np.asarray(Image.fromarray(np.asarray(evidence)).resize(small.size, Image.Resampling.BILINEAR), np.float32)
    weight = 0.75 * (share / 255)[..., None]
    mixed = (1 - weight) * grey + weight * np.array([225, 40, 20], np.float32)
    return _uri(Image.fromarray(mixed.round().astype(np.uint8)), "JPEG")


def _small(pixels: Any) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def _uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=82)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
