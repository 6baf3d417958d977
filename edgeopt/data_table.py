"""The recipe's table that says which pictures there are and how they become the model's input: ``[data]``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from edgeopt.training_tables import Seed, Strict

Side = Annotated[int, Field(ge=16, le=2048)]


class DataConfig(Strict):
    """The pictures: where they are, how they are split (fractions of each class) and brought to the model's input.

    ``image_size`` is in pixels: one number for both sides, or (height, width), also written ``"160x224"``.
    ``normalize`` says whose mean and standard deviation normalize pixels: the model's, those of the train pictures, or
    none (``unit``: pixels from 0 to 1 as they are).
    """

    path: str
    image_size: Side | tuple[Side, Side] | None = None  # None: the model's own
    resize: Literal["crop", "squash", "letterbox"] = "crop"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None  # None: the model's own
    normalize: Literal["model", "data", "unit"] = "model"
    val: float = Field(0.1, gt=0, lt=0.9)
    test: float = Field(0.2, gt=0, lt=0.9)
    seed: Seed = 0
    max_pixels: int = Field(100_000_000, ge=10_000, le=10**12)
    max_test: int = Field(10_000, ge=1, le=10**9)
    exclude: str | None = None  # a list of pictures to leave out, as `edgeopt check --exclude` writes it
    group_near: bool = False  # keep near duplicates in one split

    @field_validator("image_size", mode="wrap")
    @classmethod
    def _height_and_width(cls, value: Any, handler: Any) -> Any:
        """One problem where pydantic would say one for each side of the union; two equal sides are one number."""
        if isinstance(value, str) and (found := re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", value)):
            value = tuple(int(side) for side in found.groups(default=found[1]))
        try:
            size = handler(value)
        except ValidationError:
            raise ValueError(
                "must be pixels from 16 to 2048: one number such as 224, or height and width such as [160, 224]"
            ) from None
        return size[0] if isinstance(size, tuple) and size[0] == size[1] else size
