"""What a model hands its classifier: the space in which pictures are alike or far from each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgeopt.errors import ModelError
from edgeopt.models.builders import heads_of
from edgeopt.preprocess import Float32

Features = npt.NDArray[np.float32]


def classifier_inputs(
    model: nn.Module, classes: int, batches: Iterable[Float32], *, told: Callable[[int], None] | None = None
) -> Features:
    """float32 (N, D): what enters the classifier of ``model`` for normalized float32 ``batches`` (N, 3, height, width).

    Maps are averaged over their places. The model is put in eval mode. ``told`` hears how many pictures are done.
    Raises ModelError when no layer with ``classes`` outputs is found.
    """
    heads = heads_of(model, classes)
    if not heads:
        raise ModelError(f"the model has no layer with {classes} outputs", fix="name one of timm or torchvision")
    taken: list[Any] = []
    handle = model.eval().get_submodule(heads[0]).register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    rows: list[Features] = []
    done = 0
    try:
        with torch.inference_mode():
            for batch in batches:
                model(torch.from_numpy(batch).contiguous(memory_format=torch.channels_last))
                inputs = taken.pop()
                rows.append((inputs.mean(dim=(2, 3)) if inputs.ndim == 4 else inputs.flatten(1)).numpy())
                done += len(batch)
                if told is not None:
                    told(done)
    finally:
        handle.remove()
    return np.concatenate(rows)
