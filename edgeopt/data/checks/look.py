"""What is noted of every picture while it is decoded, for the checks that come after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from edgeopt.data import near
from edgeopt.data.examine import Look
from edgeopt.preprocess import UInt8, to_rgb

#: Brightness, entropy and blur are measured on pictures of at most so many pixels a side.
_MEASURED_SIDE = 512


@dataclass(frozen=True, slots=True)
class Seen:
    """``thumbnail`` for :mod:`edgeopt.data.near`; ``size`` (width, height) of the file; cleanvision's raw measures."""

    thumbnail: UInt8
    size: tuple[int, int]
    measures: Mapping[str, Any] = field(default_factory=dict)


def make_look(*, measure: bool) -> Look:
    """A function of a decoded picture that makes its :class:`Seen`; with ``measure``, cleanvision is needed."""
    if not measure:
        return lambda image: Seen(near.thumbnail(image), _size(image))
    from edgeopt.data.checks.quality import measures

    def look(image: Image.Image) -> Seen:
        rgb = to_rgb(image)
        thumbnail = near.thumbnail(rgb)
        if max(rgb.size) > _MEASURED_SIDE:
            scale = _MEASURED_SIDE / max(rgb.size)
            side = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
            rgb = rgb.resize(side, Image.Resampling.BILINEAR, reducing_gap=2.0)
        return Seen(thumbnail, _size(image), measures(rgb, _size(image)))

    return look


def _size(image: Image.Image) -> tuple[int, int]:
    width, height = image.info.get("full_size", image.size)
    return int(width), int(height)
