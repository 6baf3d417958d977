"""Channels whose way cannot be followed on paper, proven by numbers: cutting them is as good as zeroing them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgeopt.compress.replay import replay
from edgeopt.errors import ModelError

if TYPE_CHECKING:
    from edgeopt.compress.channels import Group

_NOISE = 1e-3  # of what zeroing the channels changes: float32 in another order is a thousandth of that
_TRIALS = 16  # networks that are cut and run at most: a trace takes seconds
_FAILS = (ModelError, LookupError, ArithmeticError, RuntimeError)


def proven(graph: Any, model: nn.Module, example: Tensor, groups: Sequence[Group]) -> list[Group]:
    """Those of ``groups`` without whose channels ``model`` answers as it does with their outputs set to zero.

    All are tried at once, and halves of them where that fails. Channels that are normalized together (LayerNorm) are
    never proven: zeros count in a mean. ``example`` is a picture (1, C, H, W). ``model``, in evaluation mode, stays as
    it is; its copies run on the CPU, which rounds float32 to no less, as GPUs do in convolutions. Ends after 16 trials
    with what was proven until then.
    """
    if not groups:
        return []
    whole = _lively(model)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, *example.shape[1:], generator=generator)
    left = [_TRIALS]

    def within(some: Sequence[Group]) -> list[Group]:
        if left[0] == 0:
            return []
        left[0] -= 1
        if _holds(graph, model, whole, pictures, some):
            return list(some)
        middle = len(some) // 2
        return [*within(some[:middle]), *within(some[middle:])] if middle else []

    return within(groups)


def _holds(graph: Any, model: nn.Module, whole: nn.Module, pictures: Tensor, groups: Sequence[Group]) -> bool:
    names = {module: name for name, module in model.named_modules()}
    cuts = [(group, group.channels(group.cut(group.most))) for group in groups]
    masked = copy.deepcopy(whole)
    try:
        for group, channels in cuts:
            for dep, lost in _pruning(graph, group.root, channels):
                module = dep.target.module
                if graph.is_out_channel_pruning_fn(dep.handler) and module in names:
                    _zero(masked.get_submodule(names[module]), lost)
        history = [[group.name, True, channels] for group, channels in cuts]
        cut = replay(copy.deepcopy(whole), history, example=pictures[:1])
        with torch.no_grad():
            expected, given, before = masked(pictures), cut(pictures), whole(pictures)
    except _FAILS:
        return False
    if expected.shape != given.shape:
        return False
    effect = (expected - before).abs().max()  # none: nothing was seen of what was cut
    return bool(effect > 0 and (given - expected).abs().max() <= _NOISE * effect)


def _pruning(graph: Any, root: nn.Module, channels: list[int]) -> Any:
    return graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels)


def _zero(module: nn.Module, channels: Sequence[int]) -> None:
    """Have the module give zeros in these of its outputs. LookupError for one that does not have them."""
    with torch.no_grad():
        for parameter in (getattr(module, "weight", None), getattr(module, "bias", None)):
            if isinstance(parameter, Tensor):
                parameter[list(channels)] = 0.0


def _lively(model: nn.Module) -> nn.Module:
    """A copy in which every branch counts: factors that start at zero, or nearly, hide what comes after them."""
    model = copy.deepcopy(model).cpu().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model
