"""Logits of a PyTorch model on a prepared set, in fp32, and the validation that training judges epochs by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeopt.models.modes import evaluating
from edgeopt.preprocess import Float32, PreprocessSpec
from edgeopt.sets import PictureSet
from edgeopt.train.processes import ALONE, Processes


class Pictures(Protocol):
    """Pictures in a fixed order: a prepared set, or one that is decoded as it goes."""

    def batches(self, spec: PreprocessSpec, size: int) -> Iterator[Float32]:
        """float32 (<= size, 3, height, width), normalized as ``spec`` says."""


def logits(model: nn.Module, picture_set: Pictures, spec: PreprocessSpec, batch: int = 64) -> npt.NDArray[np.float32]:
    """float32 (N, classes) for every picture in order, in eval mode on the model's device; modes are restored."""
    example = next(model.parameters())
    last = any(
        parameter.ndim == 4
        and parameter.is_contiguous(memory_format=torch.channels_last)
        and not parameter.is_contiguous()
        for parameter in model.parameters()
    )
    layout = torch.channels_last if last else torch.contiguous_format
    with evaluating(model), torch.inference_mode(), torch.autocast(example.device.type, enabled=False):
        answers = [
            model(torch.from_numpy(images).to(example.device, memory_format=layout)).float().cpu()
            for images in picture_set.batches(spec, batch)
        ]
    return np.asarray(torch.cat(answers).numpy(), dtype=np.float32)


def evaluator(
    picture_set: PictureSet, spec: PreprocessSpec, batch: int = 64, processes: Processes = ALONE
) -> Callable[[nn.Module], dict[str, float]]:
    """A function from a model to its figures on ``picture_set``, of which each of ``processes`` judges its share.

    ``{"top1": share 0-1, "recall": mean over the classes there of the share found, "loss": mean cross-entropy,
    "loss_error": its standard error}``.
    """
    share = picture_set.part(processes.rank, processes.count)
    labels, classes = torch.from_numpy(np.array(share.labels)), int(picture_set.labels.max()) + 1

    def evaluate(model: nn.Module) -> dict[str, float]:
        sums = torch.zeros(2 * classes + 2, dtype=torch.float64)  # by class there and right, the losses, their squares
        if len(share):
            answers: Tensor = torch.from_numpy(logits(model, share, spec, batch))
            right = labels[answers.argmax(dim=1) == labels]
            sums[:classes] = torch.bincount(labels, minlength=classes)
            sums[classes:-2] = torch.bincount(right, minlength=classes)
            losses = nn.functional.cross_entropy(answers.double(), labels, reduction="none")
            sums[-2], sums[-1] = losses.sum(), losses.square().sum()
        total = processes.total(sums)
        there, right = total[:classes], total[classes:-2]
        loss, square = total[-2:] / there.sum()
        return {
            "top1": float(right.sum() / there.sum()),
            "recall": float((right[there > 0] / there[there > 0]).mean()),
            "loss": float(loss),
            "loss_error": float(((square - loss**2).clamp(min=0) / there.sum()).sqrt()),
        }

    return evaluate
