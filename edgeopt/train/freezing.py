"""Which layers are trained at which step: all, the head alone, or one after another from the head down."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from edgeopt.train.config import LoopConfig
from edgeopt.train.features import ADAPTER

_PARAMETERS_PER_LAYER = 12  # timm's own grouping of models that do not say what their layers are
_GRADUAL_SHARE = 0.5  # of the steps after the head's own: by then every layer is trained


def depths(model: nn.Module) -> dict[str, int]:
    """Parameter name -> layers between it and the head, whose own are 0; as timm's layer decay counts them."""
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        numbers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
        last = max(numbers.values())
        return {name: last - number for name, number in numbers.items()}
    # Other models: their parameters in order, a dozen to a layer; the last linear layer, else convolution, is the head.
    classifier = _classifier(model)
    head = {name for name, _ in model.named_parameters() if classifier and name.startswith(f"{classifier}.")}
    trunk = [name for name, _ in model.named_parameters() if name not in head]
    layers = math.ceil(len(trunk) / _PARAMETERS_PER_LAYER)
    below = {name: layers - index // _PARAMETERS_PER_LAYER for index, name in enumerate(trunk)}
    return dict.fromkeys(head, 0) | below


def _classifier(model: nn.Module) -> str | None:
    """The name of the last linear layer, or of the last convolution where there is none."""
    linear = convolution = None
    for name, module in model.named_modules():
        if name.endswith(ADAPTER):
            continue
        if isinstance(module, nn.Linear):
            linear = name
        elif isinstance(module, nn.Conv2d):
            convolution = name
    return linear or convolution


def open_layers(step: int, config: LoopConfig, *, layers: int, steps_per_epoch: int) -> int:
    """How many of a model's ``layers`` are trained at ``step`` (from 0), counted from the head: 1 is the head alone.

    The head is alone for ``head_epochs``, and always when ``unfreeze`` is ``none``. Then all are trained, or, when it
    is ``gradual``, one more at even intervals until half of what is left of the training (Howard & Ruder 2018,
    https://arxiv.org/abs/1801.06146, section 3.3).
    """
    alone = round(config.head_epochs * steps_per_epoch)
    if config.unfreeze == "none" or step < alone:
        return 1
    if config.unfreeze == "all":
        return layers
    span = max(1, config.epochs * steps_per_epoch - alone) * _GRADUAL_SHARE
    intervals = math.floor((step - alone) * (layers - 1) / span + 1e-9)
    return min(layers, 1 + intervals + (alone > 0))


class Freezing:
    """Freezes and unfreezes the layers of ``model``; what is frozen depends on the step and on nothing else.

    Frozen parameters get no gradient, so that nothing is computed backward through layers that are all frozen, and
    BatchNorms among them normalize with the statistics they came with. Parameters that were frozen before stay so.
    """

    def __init__(self, model: nn.Module, config: LoopConfig, *, steps_per_epoch: int) -> None:
        self._config, self._steps_per_epoch = config, steps_per_epoch
        self.changes = config.unfreeze == "gradual" or (config.unfreeze == "all" and config.head_epochs > 0)
        self._active = self.changes or config.unfreeze == "none"
        depth = depths(model) if self._active else {}
        self.layers = 1 + max(depth.values(), default=0)
        self._parameters = [
            (parameter, depth[name])
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name in depth
        ]
        self._norms = _norms(model, depth)

    def open(self, step: int) -> int:
        """Layers trained at ``step``; all there are when nothing is ever frozen."""
        if not self._active:
            return self.layers
        return open_layers(step, self._config, layers=self.layers, steps_per_epoch=self._steps_per_epoch)

    def apply(self, step: int) -> int:
        """Have the model in training mode frozen as it is at ``step``; how many layers are trained."""
        opened = self.open(step)
        if not self._active:
            return opened
        for parameter, depth in self._parameters:
            parameter.requires_grad_(depth < opened)
        for norm, depth in self._norms:
            norm.train(depth < opened)
        return opened

    def share(self) -> float:
        """Of the layers under the head, how many are trained in the mean over all steps (0-1)."""
        steps = self._config.epochs * self._steps_per_epoch
        below = max(1, self.layers - 1)
        return sum(self.open(step) - 1 for step in range(steps)) / (below * max(1, steps))

    def release(self) -> None:
        """Leave every parameter as trainable as it was found."""
        for parameter, _ in self._parameters:
            parameter.requires_grad_(True)


@contextmanager
def fixed_batchnorms(model: nn.Module) -> Iterator[None]:
    """No gain and bias of a BatchNorm is trained while the block runs."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    fixed = [parameter for module in norms for parameter in module.parameters() if parameter.requires_grad]
    for parameter in fixed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in fixed:
            parameter.requires_grad_(True)


def freeze_batchnorm_statistics(model: nn.Module) -> None:
    """Put every BatchNorm in eval mode; call it after ``model.train()``."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _norms(model: nn.Module, depth: dict[str, int]) -> list[tuple[nn.Module, int]]:
    """Every BatchNorm and its depth: its parameters', or, without any, that of the parameter before it."""
    found: list[tuple[nn.Module, int]] = []
    last = max(depth.values(), default=0)
    for name, module in model.named_modules():
        own = [depth[f"{name}.{key}" if name else key] for key, _ in module.named_parameters(recurse=False) if depth]
        last = own[0] if own else last
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            found.append((module, last))
    return found
