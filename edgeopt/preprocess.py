"""THE preprocessing: one spec for training-eval, calibration, every engine and predict; done in edgeopt.pixels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from edgeopt.config import Strict, validate
from edgeopt.files import read_json
from edgeopt.pixels import Float32 as Float32
from edgeopt.pixels import UInt8 as UInt8
from edgeopt.pixels import load_picture as load_picture
from edgeopt.pixels import normalization as normalization
from edgeopt.pixels import normalize as normalize
from edgeopt.pixels import prepare as prepare
from edgeopt.pixels import strips as strips
from edgeopt.pixels import to_rgb as to_rgb

#: Specs travel in run folders: bounds keep a stranger's from taking the memory or dividing by nothing.
Side = Annotated[int, Field(ge=1, le=2048)]
Mean = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
Level = Annotated[int, Field(ge=0, le=255)]


class PreprocessSpec(Strict):
    """Everything between a picture file and the model's input tensor.

    ``size`` is (height, width) in pixels; ``mean`` and ``std`` are of pixels scaled to [0, 1];
    ``background`` is the RGB colour transparent pixels are composited over and letterboxes are filled with.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    size: tuple[Side, Side] = (224, 224)
    resize: Literal["crop", "squash", "letterbox"] = "crop"
    crop_pct: float = Field(0.875, ge=0.05, le=1)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[Mean, Mean, Mean] = (0.485, 0.456, 0.406)
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    background: tuple[Level, Level, Level] = (255, 255, 255)

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
        """The spec in ``path``; raises RunError when it is missing or not JSON, ConfigError when it is no spec."""
        return validate(cls, read_json(path), where=str(path))
