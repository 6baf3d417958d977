"""Layers of a pruned network are to give, in the channels that are left, what they gave in the whole one.

A few thousand answers tell little of what a network that lost half of its multiplications should do; its layers' maps
tell it in every channel and place. No adapter stands between, as between networks that were built apart (Romero et al.
2015, FitNets, arXiv 1412.6550): a channel that is left is compared with itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.models.modes import hooked
from edgeopt.train.distillation import Asked
from edgeopt.train.objectives import Objective

_OFFSET = 0.01  # of the mean square: a layer that gives nearly the same everywhere is not to outweigh the others


@dataclass(frozen=True)
class Matched:
    """The ``whole`` network, and of its layers that are left which ``outputs`` are: indices int64, in order.

    ``sha256`` is that of its weights: it may be the teacher.
    """

    whole: nn.Module
    sha256: str
    outputs: Mapping[str, Tensor]


class LayerMatching:
    """``objective + weight * mean over layers of mean((ours - theirs)^2) / var(theirs)``.

    ``whole`` is in eval mode and never trained; where it is the very teacher that ``objective`` asks (``asks``), its
    one pass serves both.
    """

    def __init__(
        self, objective: Objective, whole: Asked, outputs: Mapping[str, Tensor], *, weight: float, asks: bool = False
    ) -> None:
        self.weight = weight
        self._objective, self._whole, self._outputs, self._asks = objective, whole, outputs, asks

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        whole = self._whole.like(images)
        theirs: dict[str, list[Tensor]] = {name: [] for name in self._outputs}
        apart: list[Tensor] = []

        def keep(name: str, layer: nn.Module, output: Tensor) -> None:
            """A copy: the next layer may change its input in place. A layer may run more than once."""
            channels = 1 if isinstance(layer, nn.Conv2d) else output.dim() - 1
            chosen = self._outputs[name].to(output.device)
            theirs[name].append(output.detach().index_select(channels, chosen).float())

        def compare(name: str, layer: nn.Module, output: Tensor) -> None:
            if not theirs[name] or theirs[name][0].shape != output.shape:
                return  # what runs otherwise in training than in evaluation has nothing to be compared with
            wanted = theirs[name].pop(0)
            scale = wanted.var() + _OFFSET * wanted.square().mean()
            apart.append((output.float() - wanted).square().mean() / scale.clamp(min=1e-12))

        with hooked([*_after(whole, self._outputs, keep), *_after(model, self._outputs, compare)]):
            if not self._asks:
                with torch.no_grad():
                    whole(images)
            loss = self._objective(model, images, targets)
        return loss + self.weight * torch.stack(apart).mean() if apart else loss


def _after(model: nn.Module, names: Mapping[str, Any], act: Any) -> list[Any]:
    """Hooks that call ``act(name, layer, output)`` after each of the layers."""
    layers = dict(model.named_modules())
    return [
        layers[name].register_forward_hook(lambda layer, _inputs, output, name=name: act(name, layer, output))
        for name in names
    ]
