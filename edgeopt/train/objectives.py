"""What training minimizes: a loss of the logits, with a teacher's answers or a penalty on the weights where asked."""

from __future__ import annotations

import copy
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


class Distillation:
    """``weight * T^2 * KL(teacher || student) + (1 - weight) * cross-entropy``, both softened by temperature T.

    Hinton, Vinyals & Dean 2015, https://arxiv.org/abs/1503.02531; T^2 keeps the gradients' size independent of T.
    The teacher is copied, in eval mode, never trained; it sees the same augmented images as the student.
    """

    def __init__(
        self, teacher: nn.Module, *, temperature: float = 3.0, weight: float = 0.9, label_smoothing: float = 0.0
    ) -> None:
        self.temperature = temperature
        self.weight = weight
        self.label_smoothing = label_smoothing
        self._teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self._placed: dict[tuple[torch.device, torch.memory_format], nn.Module] = {}

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._teacher_for(images)(images).float()
        logits = model(images).float()
        divergence = functional.kl_div(
            functional.log_softmax(logits / self.temperature, dim=1),
            functional.log_softmax(wanted / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        hard = functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return self.weight * self.temperature**2 * divergence + (1 - self.weight) * hard

    def _teacher_for(self, images: Tensor) -> nn.Module:
        """The teacher on the images' device in their memory format; the speed probe goes through several."""
        layout = memory_format_of(images)
        place = (images.device, layout)
        if place not in self._placed:
            teacher = copy.deepcopy(self._teacher)
            self._placed[place] = teacher.to(images.device).to(memory_format=layout)
        return self._placed[place]


def memory_format_of(images: Tensor) -> torch.memory_format:
    """channels_last when a batch (N, channels, height, width) is stored so, else contiguous."""
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
