"""The batch size by a probe: the smallest with nearly the best throughput among those that fit into memory."""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import TrainingError
from edgeopt.train.memory import is_out_of_memory, release
from edgeopt.train.objectives import Objective
from edgeopt.train.probe import Choice, probe

SMALLEST, LARGEST = 8, 256
_STEPS_AN_EPOCH = 10  # an epoch of fewer steps is not worth the throughput
_NEARLY = 0.95  # of the best throughput; small batches take more steps and generalize better


@dataclass(frozen=True)
class BatchSize:
    """``size`` was chosen; ``tried`` is pictures per second by size, and ``too_large`` the first that did not fit."""

    size: int
    tried: dict[int, float]
    too_large: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is kept beside the model."""
        tried = [{"size": size, "pictures_per_second": speed} for size, speed in self.tried.items()]
        return {"schema": 1, "size": self.size, "tried": tried, "too_large": self.too_large}


def find_batch_size(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    objective: Objective,
    choice: Choice,
    *,
    pictures: int,
    device: torch.device | None = None,
) -> BatchSize:
    """Time training steps of 8, 16, 32, ... of the given examples, repeated, on copies of ``model``.

    At most 256, and at least ten steps in an epoch of ``pictures``. Raises TrainingError when not even the smallest
    fits into memory.
    """
    device = device or torch.device("cpu")
    trial = copy.deepcopy(model).to(device)
    tried: dict[int, float] = {}
    size, too_large = SMALLEST, None
    while size <= LARGEST and (size == SMALLEST or pictures // size >= _STEPS_AN_EPOCH):
        rows = torch.arange(size) % len(images)
        fits = True
        try:
            examples = images[rows].to(device), targets[rows].to(device)
            found = probe(trial, *examples, objective, [choice], rounds=3, budget_seconds=4.0)
            tried[size] = size / statistics.median(found.seconds[choice])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        if not fits:
            release()
            too_large = size
            break
        size *= 2
    if not tried:
        raise TrainingError(
            f"not even {SMALLEST} pictures at a time fit into memory", fix="lower --image-size, or take a smaller model"
        )
    best = max(tried.values())
    return BatchSize(min(size for size, speed in tried.items() if speed >= _NEARLY * best), tried, too_large)
