"""The pictures that set a variant's int8 ranges; diverse ones differ in the features of the float model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeopt.config import CalibrationRecipe
from edgeopt.data.dataset import Item
from edgeopt.data.threads import in_threads, stacked
from edgeopt.errors import ModelError
from edgeopt.models.features import Features, classifier_inputs
from edgeopt.preprocess import Float32, PreprocessSpec, UInt8, normalize, prepare
from edgeopt.sets import PictureSet
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.workspace import Workspace

_BATCH = 32
_CALIBRATION_BATCH = 16


class CalibrationBatches(Sequence[Tensor]):
    """A prepared set as float32 (<= 16, 3, height, width) batches, each read from its file when needed."""

    def __init__(self, pictures: PictureSet, spec: PreprocessSpec) -> None:
        self._pictures, self._spec = pictures, spec

    def __len__(self) -> int:
        return -(-len(self._pictures) // _CALIBRATION_BATCH)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = slice(index * _CALIBRATION_BATCH, (index + 1) * _CALIBRATION_BATCH)
        return torch.from_numpy(normalize(np.asarray(self._pictures.pictures[rows]), self._spec))


def calibration_set(workspace: Workspace, recipe: CalibrationRecipe, variant: Variant) -> PictureSet:
    """The set that ``recipe`` draws for ``variant``, in the variant's preprocessing, written on first use.

    A diverse draw compares pictures by what the float model that the variant goes back to hands its classifier, so that
    every variant of one model gets the same pictures.
    """
    return workspace.calibration(recipe, variant.preprocess, lambda: _train_features(workspace, variant))


def _train_features(workspace: Workspace, variant: Variant) -> Features | None:
    """(N, D) for the train pictures in order; None, which is said, for a model whose classifier is not found."""
    root = open_variant(workspace.run, workspace.run.root_of(variant.name))
    spec, items = root.preprocess, workspace.dataset.of("train")
    model = root.load().to(memory_format=torch.channels_last)
    with workspace.console.task("features of train") as progress:
        try:
            return classifier_inputs(
                model,
                len(workspace.dataset.classes),
                _batches(workspace, items, spec),
                told=lambda done: progress(done, len(items)),
            )
        except ModelError as error:
            workspace.console.say(f"calibration: pictures are compared by their thumbnails, because {error.message}")
            return None


def _batches(workspace: Workspace, items: tuple[Item, ...], spec: PreprocessSpec) -> Iterator[Float32]:
    """Every picture of ``items`` in order, decoded as it is needed."""

    def load(item: Item) -> UInt8:
        with workspace.dataset.open(item, max_pixels=workspace.data.max_pixels) as image:
            return prepare(image, spec)

    return (normalize(batch, spec) for batch in stacked(in_threads(load, items), _BATCH))
