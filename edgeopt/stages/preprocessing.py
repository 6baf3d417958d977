"""Which preprocessing a new model gets: what it was trained with, and what the user says instead."""

from __future__ import annotations

from typing import Any

from edgeopt import models
from edgeopt.config import DataConfig
from edgeopt.console import Console
from edgeopt.data.dataset import Dataset
from edgeopt.data.pixel_statistics import pixel_statistics
from edgeopt.models import RANDOM, Created
from edgeopt.preprocess import PreprocessSpec


def preprocessing(created: Created, data: DataConfig, dataset: Dataset, console: Console) -> PreprocessSpec:
    """The model's own preprocessing with what ``data`` states; ``normalize = "data"`` reads the train pictures."""
    values: dict[str, Any] = models.preprocess_of(created.architecture, image_size=data.image_size)
    if data.interpolation is not None:
        values["interpolation"] = data.interpolation
    spec = PreprocessSpec.model_validate({**values, "resize": data.resize})
    if data.normalize == "model":
        return spec
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if data.normalize == "data":
        with console.task("measuring the train pictures") as progress:
            mean, std = pixel_statistics(
                dataset, dataset.of("train"), spec, max_pixels=data.max_pixels, progress=progress
            )
        console.say(f"normalized by the train pictures: mean {_shown(mean)}, deviation {_shown(std)}")
    return spec.model_copy(update={"mean": mean, "std": std})


def note_other_normalization(created: Created, spec: PreprocessSpec, console: Console) -> None:
    """Say it when weights that are about to be trained on were made with pictures normalized otherwise."""
    own = models.preprocess_of(created.architecture)
    if created.weights_origin != RANDOM and (tuple(own["mean"]), tuple(own["std"])) != (spec.mean, spec.std):
        console.say(
            f"note: the weights of {created.architecture.full_name} were trained on pictures normalized otherwise "
            f"(mean {_shown(own['mean'])}, deviation {_shown(own['std'])}); its first layers have to adapt"
        )


def _shown(values: tuple[float, float, float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
