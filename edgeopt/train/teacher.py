"""Teachers that see a student's batches: another model, or an ensemble that answers as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeopt.preprocess import PreprocessSpec
from edgeopt.voting import Combination


class Adapted(nn.Module):
    """A model fed with pictures that were prepared for another: normalization and size are changed to its own.

    The part of the picture is the student's: both see the same augmented crop.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, own: PreprocessSpec, given: PreprocessSpec) -> None:
        super().__init__()
        self.model = model
        self._size = own.size if own.size != given.size else None
        scale = torch.tensor(given.std) / torch.tensor(own.std)
        shift = (torch.tensor(given.mean) - torch.tensor(own.mean)) / torch.tensor(own.std)
        self._same = (own.mean, own.std) == (given.mean, given.std)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, 3, height, width) of the student to the model's logits."""
        if not self._same:
            images = images * self.scale + self.shift
        if self._size is not None:
            images = functional.interpolate(images, self._size, mode="bilinear", antialias=True, align_corners=False)
        answers: Tensor = self.model(images)
        return answers


@dataclass(frozen=True)
class Voter:
    """One member: the model, how it wants its pictures, and the temperature that makes its probabilities honest."""

    model: nn.Module
    spec: PreprocessSpec
    temperature: float


class EnsembleTeacher(nn.Module):
    """Answers with the log-probabilities of the members' ``combination``, float32 (N, classes), which serve as logits.

    Images are prepared as ``given`` says, which is the student's preprocessing.
    """

    def __init__(self, voters: Sequence[Voter], combination: Combination, given: PreprocessSpec) -> None:
        super().__init__()
        self.members = nn.ModuleList(Adapted(voter.model, voter.spec, given) for voter in voters)
        self._temperatures = [voter.temperature for voter in voters]
        self._combination = combination

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, 3, height, width) to float32 (N, classes)."""
        answers = [
            functional.softmax(member(images).double() / temperature, dim=1).cpu().numpy()
            for member, temperature in zip(self.members, self._temperatures, strict=True)
        ]
        return torch.from_numpy(self._combination.log_probabilities(answers)).float().to(images.device)
