"""What a student learns from a teacher's answers: three measures of how far its own are from them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeopt.train.losses import CrossEntropyLoss, Loss


class Divergence(Protocol):
    """The student's and the teacher's logits float32 (N, classes), and the targets, to a scalar.

    Targets are int64 classes (N,), or float32 shares (N, classes) where batches are mixed.
    """

    def __call__(self, logits: Tensor, wanted: Tensor, targets: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Hinton:
    """``T^2 * KL(teacher || student)``, both softened by temperature T.

    Hinton, Vinyals & Dean 2015, https://arxiv.org/abs/1503.02531; T^2 keeps the gradients' size independent of T.
    """

    temperature: float = 3.0

    def __call__(self, logits: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        student = functional.log_softmax(logits / self.temperature, dim=1)
        return self.temperature**2 * _kl(student, functional.log_softmax(wanted / self.temperature, dim=1))


@dataclass(frozen=True)
class DecoupledKD:
    """``T^2 * (alpha * TCKD + beta * NCKD)``: Hinton's divergence in two parts that are weighted apart.

    TCKD is the divergence of (true class, all others together), NCKD that of the others among themselves; Hinton's is
    TCKD + (1 - the teacher's probability of the true class) * NCKD, so that a teacher that is sure hides what it knows
    of the others. Zhao et al. 2022, https://arxiv.org/abs/2203.08679, eq. 7. Of a mixed picture the true class is the
    one with the larger share.
    """

    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0

    def __call__(self, logits: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        true = targets.argmax(dim=1) if targets.is_floating_point() else targets
        logits, wanted = logits / self.temperature, wanted / self.temperature
        target_class = _kl(_true_or_not(logits, true), _true_or_not(wanted, true))
        others = _kl(
            functional.log_softmax(_others(logits, true), dim=1), functional.log_softmax(_others(wanted, true), dim=1)
        )
        return self.temperature**2 * (self.alpha * target_class + self.beta * others)


@dataclass(frozen=True)
class Dist:
    """``T^2 * ((1 - mean r over pictures) + (1 - mean r over classes))`` with Pearson's r of the probabilities.

    The first r compares the classes of one picture, the second the pictures of the batch in one class: relations, which
    a student that cannot reach the teacher's probabilities can still keep. Huang et al. 2022,
    https://arxiv.org/abs/2205.10536, eq. 7 to 10.
    """

    temperature: float = 4.0

    def __call__(self, logits: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        student = functional.softmax(logits / self.temperature, dim=1)
        teacher = functional.softmax(wanted / self.temperature, dim=1)
        apart = 2 - _pearson(student, teacher).mean() - _pearson(student.T, teacher.T).mean()
        return self.temperature**2 * apart


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of log-probabilities (N, K), the mean over N."""
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _true_or_not(logits: Tensor, true: Tensor) -> Tensor:
    """Log-probabilities (N, 2) of the true class and of all others together."""
    log_p = functional.log_softmax(logits, dim=1)
    return torch.cat([log_p.gather(1, true[:, None]), _others(log_p, true).logsumexp(dim=1, keepdim=True)], dim=1)


def _others(values: Tensor, true: Tensor) -> Tensor:
    """(N, K) without the true class's column: (N, K - 1)."""
    kept = torch.ones_like(values, dtype=torch.bool).scatter_(1, true[:, None], False)
    return values[kept].view(len(values), -1)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of (N, K): (N,); 0 for a row without variance."""
    return functional.cosine_similarity(a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True), dim=1)


class Distillation:
    """``weight * divergence(student, teacher) + (1 - weight) * loss``.

    The teacher is copied, in eval mode, never trained, unless it comes as :class:`Asked`, which others may share; it
    sees the same augmented images as the student. With None its answers come with the targets: float32
    (N, 1 + classes), the class and the teacher's logits.
    """

    def __init__(
        self,
        teacher: nn.Module | Asked | None,
        divergence: Divergence | None = None,
        *,
        weight: float = 0.9,
        loss: Loss | None = None,
    ) -> None:
        self.weight = weight
        self._divergence = divergence or Hinton()
        self._loss = loss or CrossEntropyLoss()
        self._teacher = Asked(teacher) if isinstance(teacher, nn.Module) else teacher

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        if self._teacher is None:
            wanted, targets = targets[:, 1:], targets[:, 0].long()
        else:
            with torch.no_grad():
                wanted = self._teacher.like(images)(images).float()
        logits = model(images).float()
        hard = self._loss(logits, targets).mean()
        return self.weight * self._divergence(logits, wanted, targets) + (1 - self.weight) * hard


class Asked:
    """A teacher's copies: in eval mode, without gradients, wherever images come from."""

    def __init__(self, teacher: nn.Module) -> None:
        self._teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self._placed: dict[tuple[torch.device, torch.memory_format], nn.Module] = {}

    def like(self, images: Tensor) -> nn.Module:
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
