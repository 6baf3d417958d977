"""THE preprocessing: one spec and its only implementation, for training-eval, calibration, every engine and predict."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps
from pydantic import Field

from edgeopt.config import Strict, validate
from edgeopt.errors import DataError, RunError

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
DEFAULT_MAX_PIXELS = 100_000_000


class PreprocessSpec(Strict):
    """Everything between a picture file and the model's input tensor.

    ``size`` is (height, width) in pixels; ``mean`` and ``std`` are of pixels scaled to [0, 1];
    ``background`` is the RGB colour transparent pixels are composited over and letterboxes are filled with.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    size: tuple[int, int] = (224, 224)
    resize: Literal["crop", "squash", "letterbox"] = "crop"
    crop_pct: float = Field(0.875, gt=0, le=1)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    background: tuple[int, int, int] = (255, 255, 255)

    @property
    def key(self) -> str:
        """Twelve hex digits that name the uint8 pictures this spec makes; mean and std do not count."""
        geometry = self.model_dump(mode="json", exclude={"mean", "std"})
        return hashlib.sha256(json.dumps(geometry, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the model's input."""
        return (3, *self.size)

    def to_json(self) -> dict[str, Any]:
        """As written to ``preprocess.json``."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def read(cls, path: Path) -> PreprocessSpec:
        """The spec in ``path``; raises RunError when it is missing or not JSON."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {error}") from None
        return validate(cls, values, where=str(path))


def open_picture(
    path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS, draft: tuple[int, int] | None = None
) -> Image.Image:
    """The picture in ``path``, decoded, turned upright by its EXIF orientation, in its own mode.

    ``draft`` (width, height) lets JPEG decode at a smaller scale that is still at least that large.
    Raises DataError saying what is wrong with the file.
    """
    try:
        with Image.open(path) as image:
            if draft is not None and image.format == "JPEG":
                image.draft(None, draft)
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(f"{path}: {width}x{height} pixels are more than max_pixels = {max_pixels}")
            image.load()
            upright = ImageOps.exif_transpose(image)
            upright.format = image.format
            return upright
    except DataError:
        raise
    # Pillow's decoders raise a wide family (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:  # noqa: BLE001 - the one place; the type is recorded
        raise DataError(f"{path}: cannot be read as a picture ({type(error).__name__}: {error})") from None


def to_rgb(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """8-bit RGB: alpha composited over ``background``, 16-bit grey scaled to 8, palette, CMYK and others converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_grey(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*background, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits scaled to 8; 32-bit integers are taken for 16-bit (PNG's case)."""
    values = np.asarray(image).astype(np.float64)
    top = 65535.0 if image.mode != "F" else 1.0 if values.max(initial=0.0) <= 1.0 else 255.0
    return Image.fromarray(np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8))


def prepare(image: Image.Image, spec: PreprocessSpec) -> UInt8:
    """uint8 (height, width, 3): RGB, resized and cropped as ``spec`` says."""
    image = to_rgb(image, spec.background)
    height, width = spec.size
    resample = _FILTERS[spec.interpolation]
    if spec.resize == "squash":
        return np.asarray(image.resize((width, height), resample))
    if spec.resize == "letterbox":
        return np.asarray(ImageOps.pad(image, (width, height), resample, color=spec.background))
    # Shorter side to size/crop_pct, then the centre, as timm and torchvision evaluate.
    scale = max(height / spec.crop_pct / image.height, width / spec.crop_pct / image.width)
    enlarged = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(enlarged, resample)
    left, top = (enlarged[0] - width) // 2, (enlarged[1] - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def load_picture(path: Path, spec: PreprocessSpec, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt8:
    """uint8 (height, width, 3) of the picture in ``path``, ready for :func:`normalize`; raises DataError."""
    # Twice the size still leaves the resampling filter everything it can see.
    side = 2 * int(max(spec.size) / spec.crop_pct)
    return prepare(open_picture(path, max_pixels=max_pixels, draft=(side, side)), spec)


def normalize(pictures: UInt8, spec: PreprocessSpec) -> Float32:
    """float32 (N, 3, height, width), C-contiguous: (x / 255 - mean) / std of uint8 (N, height, width, 3)."""
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise DataError(f"expected uint8 pictures (N, height, width, 3), got {pictures.dtype} {pictures.shape}")
    mean = np.asarray(spec.mean, dtype=np.float32)
    std = np.asarray(spec.std, dtype=np.float32)
    scale, offset = 1.0 / (255.0 * std), -mean / std
    values = pictures.astype(np.float32)
    values *= scale.astype(np.float32)
    values += offset.astype(np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


#: A truncated JPEG must be an error, never a half-grey picture.
ImageFile.LOAD_TRUNCATED_IMAGES = False
