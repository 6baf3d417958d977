"""From a picture file to the model's input: the one implementation, in numpy and Pillow alone.

What edgeopt ships to devices is this very file (:mod:`edgeopt.packaging`), so it stands on nothing but its neighbours
``errors``, ``files`` and ``picture_files``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from edgeopt.errors import DataError
from edgeopt.picture_files import DEFAULT_MAX_PIXELS, decoded

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
#: Pixels of an enlarged picture before its centre is cut out; very long ones are cut before they are enlarged.
_MOST_ENLARGED = 2**26
#: Of longer sides, Pillow's tables of filter coefficients and what it has half resized outgrow the picture.
_LONGEST = 2**16
_STRIP_PIXELS = 2**20


class Preprocessing(Protocol):
    """The fields of :class:`edgeopt.preprocess.PreprocessSpec`, where they are explained."""

    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def resize(self) -> str: ...
    @property
    def crop_pct(self) -> float: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...
    @property
    def background(self) -> tuple[int, int, int]: ...


def to_rgb(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """8-bit RGB: alpha composited over ``background``, 16-bit grey scaled to 8, palette, CMYK and others converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    white = _white(image)
    rgb = Image.new("RGB", image.size)
    for box in strips(image):  # the steps in between are of several copies, which would be the most memory ever taken
        rgb.paste(_to_rgb(image.crop(box), background, white), box)
    return rgb


def strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of parts of a megapixel, one under the other; a small picture is one part."""
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _to_rgb(strip: Image.Image, background: tuple[int, int, int], white: float) -> Image.Image:
    transparent = strip.info.get("transparency")
    if strip.mode.startswith("I;16") or strip.mode in ("I", "F"):
        grey = _deep_grey(strip, white).convert("RGB")
        if transparent is not None:
            grey.paste(background, mask=Image.fromarray(np.asarray(strip) == transparent))
        return grey
    if strip.mode in ("RGBA", "LA", "PA", "RGBa", "La") or transparent is not None:
        layer = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*background, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return strip.convert("RGB")


def _deep_grey(strip: Image.Image, white: float) -> Image.Image:
    """Grey of more than 8 bits scaled to 8: ``white`` and more is 255, what is no number 0."""
    values = np.nan_to_num(np.asarray(strip).astype(np.float64), nan=0.0, posinf=white, neginf=0.0)
    return Image.fromarray(np.clip(values * (255.0 / white) + 0.5, 0, 255).astype(np.uint8))


def _white(image: Image.Image) -> float:
    """The level of deep grey that is white: 32-bit integers are taken for 16-bit (PNG's case), floats by range."""
    if image.mode != "F":
        return 65535.0
    for box in strips(image):
        values = np.asarray(image.crop(box))
        if values.max(initial=0.0, where=np.isfinite(values)) > 1.0:
            return 255.0
    return 1.0


def prepare(image: Image.Image, spec: Preprocessing) -> UInt8:
    """uint8 (height, width, 3): RGB, resized and cropped as ``spec`` says."""
    image = to_rgb(image, spec.background)
    height, width = spec.size
    resample = _FILTERS[spec.interpolation]
    if spec.resize != "crop" and max(image.size) > _LONGEST:
        image = image.reduce((-(-image.width // _LONGEST), -(-image.height // _LONGEST)))
    if spec.resize == "squash":
        return np.asarray(image.resize((width, height), resample))
    if spec.resize == "letterbox":
        return np.asarray(_padded(image, (width, height), resample, spec.background))
    # Shorter side to size/crop_pct, then the centre, as timm and torchvision evaluate.
    scale = max(height / spec.crop_pct / image.height, width / spec.crop_pct / image.width)
    enlarged = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if enlarged[0] * enlarged[1] > _MOST_ENLARGED:
        x, y = (image.width - width / scale) / 2, (image.height - height / scale) / 2
        box = (max(0.0, x), max(0.0, y), min(image.width, x + width / scale), min(image.height, y + height / scale))
        return np.asarray(image.resize((width, height), resample, box=box))
    image = image.resize(enlarged, resample)
    left, top = (enlarged[0] - width) // 2, (enlarged[1] - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def _padded(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, colour: tuple[int, int, int]
) -> Image.Image:
    """As ImageOps.pad, also for a picture so long that its other side comes to less than a pixel."""
    thin = min(size[0] * image.height / image.width, size[1] * image.width / image.height)
    if thin < 1:
        wide = image.width > image.height
        image = image.resize((size[0], 1) if wide else (1, size[1]), resample)
    return ImageOps.pad(image, size, resample, color=colour)


def load_picture(path: Path, spec: Preprocessing, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt8:
    """uint8 (height, width, 3) of the picture in ``path``, ready for :func:`normalize`; raises DataError."""
    # Twice the size still leaves the resampling filter everything it can see.
    side = 2 * int(max(spec.size) / spec.crop_pct)
    with decoded(path, max_pixels=max_pixels, draft=(side, side)) as image:
        return prepare(image, spec)


def normalize(pictures: UInt8, spec: Preprocessing) -> Float32:
    """float32 (N, 3, height, width), C-contiguous: (x / 255 - mean) / std of uint8 (N, height, width, 3)."""
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise DataError(
            f"expected uint8 pictures (N, height, width, 3), got {pictures.dtype} {pictures.shape}",
            fix="pass what load_picture gives, stacked",
        )
    scale, offset = normalization(spec)
    values = pictures.astype(np.float32)
    values *= scale
    values += offset
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def normalization(spec: Preprocessing) -> tuple[Float32, Float32]:
    """What uint8 levels are multiplied by, and what is added then: float32 (3,) each."""
    mean = np.asarray(spec.mean, dtype=np.float32)
    std = np.asarray(spec.std, dtype=np.float32)
    scale, offset = 1.0 / (255.0 * std), -mean / std
    return scale.astype(np.float32), offset.astype(np.float32)
