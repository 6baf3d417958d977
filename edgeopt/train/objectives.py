"""What training minimizes: a loss of the logits, with a penalty on the weights where asked; see also distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeopt.train.losses import Loss


class Objective(Protocol):
    """Images float32 (N, 3, height, width) and targets to a scalar loss, averaged over the batch.

    Targets are class indices int64 (N,), or float32 (N, classes) where batches are mixed.
    """

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy against one-hot targets softened by ``label_smoothing`` (Szegedy et al. 2016)."""

    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(model(images).float(), targets, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class Classification:
    """The mean of a loss of logits and targets."""

    loss: Loss

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self.loss(model(images).float(), targets).mean()


@dataclass(frozen=True)
class WithL1:
    """``objective`` and ``strength`` times the sum of all weights' magnitudes; norms and biases are left alone."""

    objective: Objective
    strength: float

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 1 and parameter.requires_grad]
        penalty = torch.stack([weight.abs().sum() for weight in weights]).sum()
        return self.objective(model, images, targets) + self.strength * penalty
