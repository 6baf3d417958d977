"""After a cut, layers are fitted anew: what is left of their inputs shall give what all of it gave before.

A layer that lost inputs misses their part of its sum. Where what is left predicts that part linearly, its weights can
take it over: least squares of the missing part on the inputs kept, over pictures that went through the whole network,
with a ridge that holds the weights where nothing is told. No gradient is needed and each layer is solved by itself, in
closed form; it is the reconstruction of channel pruning (He et al. 2017, arXiv 1707.06168) for all layers in one pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from edgeopt.compress.replay import replay
from edgeopt.models.modes import evaluating, hooked

#: The ridge, of the mean variance of the inputs kept.
RIDGE = 1e-2
#: Rows (places in pictures) a layer is fitted on: so many times its inputs, and at least the least.
ROWS_AN_INPUT, LEAST_ROWS = 8, 16_384
#: Inputs of a layer, places of its kernel included, beyond which solving would take minutes and gigabytes.
MOST_INPUTS = 4608


@dataclass(frozen=True)
class Kept:
    """Which of a layer's channels are left: indices into those it had, in order."""

    outputs: Tensor
    inputs: Tensor


def reconstruct(whole: nn.Module, cut: nn.Module, history: Sequence[Any], pictures: Iterable[Tensor]) -> int:
    """Fit in place the layers of ``cut``, which is ``whole`` after ``history``; returns how many were.

    ``pictures`` are batches (N, C, H, W) as the network takes them. BatchNorm's statistics are for the caller to gather
    anew. Layers whose inputs are all there, grouped convolutions and very wide ones stay as they are.
    """
    batches = list(pictures)
    if not batches:
        return 0
    kept = kept_channels(whole, history, example=batches[0][:1])
    fits = {
        name: _Fit(module, kept[name], len(batches))
        for name, module in whole.named_modules()
        if name in kept and _is_worth_it(module, kept[name])
    }
    handles = [whole.get_submodule(name).register_forward_pre_hook(fit) for name, fit in fits.items()]
    with hooked(handles), evaluating(whole), torch.no_grad():
        for batch in batches:
            whole(batch)
        for name, fit in fits.items():
            fit.apply(cut.get_submodule(name))
    return len(fits)


def kept_channels(model: nn.Module, history: Sequence[Any], *, example: Tensor) -> dict[str, Kept]:
    """Of every plain convolution and linear layer that ``history`` leaves: which outputs and inputs it leaves.

    The cuts are made to a copy whose weights are their own places, so that they tell it whatever the graph does.
    """
    marked = copy.deepcopy(model)
    plain: dict[str, Any] = {name: module for name, module in marked.named_modules() if _is_plain(module)}
    had = {name: module.weight.shape[:2] for name, module in plain.items()}
    # float32 holds every whole number up to 2 ** 24; not every network runs in float64.
    dtype = torch.float32 if all(shape.numel() <= 2**24 for shape in had.values()) else torch.float64
    marked.to(dtype)
    for name, module in plain.items():
        places = torch.arange(had[name].numel(), dtype=dtype).reshape(*had[name], *[1] * (module.weight.dim() - 2))
        module.weight.data = places.expand_as(module.weight).clone()
    replay(marked, history, example=example.to(dtype))
    found = {}
    for name, module in marked.named_modules():
        if name in had and module.weight.numel():
            places = module.weight.data.flatten(2)[:, :, 0] if module.weight.dim() > 2 else module.weight.data
            places, inputs = places.long(), had[name][1]
            found[name] = Kept(places[:, 0] // inputs, places[0] % inputs)
    return found


def _is_plain(module: nn.Module) -> bool:
    """Whether the weight is what the layer multiplies by: no subclass that scales it first, no groups."""
    if is_parametrized(module) or type(module) not in (nn.Linear, nn.Conv2d, Conv2dSame):
        return False
    return not isinstance(module, nn.Conv2d) or module.groups == 1


def _is_worth_it(module: Any, kept: Kept) -> bool:
    size: int = len(kept.inputs) * module.weight[0, 0].numel()
    return len(kept.inputs) < int(module.weight.shape[1]) and size <= MOST_INPUTS


class _Fit:
    """Sums over places in pictures: of one layer's inputs kept (X), and of what the others gave its outputs (R)."""

    def __init__(self, module: Any, kept: Kept, batches: int) -> None:
        gone = torch.ones(module.weight.shape[1], dtype=torch.bool)
        gone[kept.inputs] = False
        self._module, self._inputs, self._gone = module, kept.inputs, gone.nonzero()[:, 0]
        self._weight = module.weight.detach()[kept.outputs][:, self._gone]
        size = len(kept.inputs) * module.weight[0, 0].numel()
        self._rows = -(-max(LEAST_ROWS, ROWS_AN_INPUT * size) // batches)  # of each batch
        self._count = 0
        self._x = torch.zeros(size, dtype=torch.float64)
        self._r = torch.zeros(len(kept.outputs), dtype=torch.float64)
        self._xx = torch.zeros(size, size, dtype=torch.float64)
        self._rx = torch.zeros(len(kept.outputs), size, dtype=torch.float64)

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """As a hook before the layer of the whole network."""
        x, r = self._told(inputs[0])
        self._count += len(x)
        self._x += x.sum(0)
        self._r += r.sum(0)
        self._xx += x.T @ x
        self._rx += r.T @ x

    def _told(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """X (rows, inputs kept times the kernel's places) and R (rows, outputs kept)."""
        module = self._module
        if isinstance(module, nn.Linear):
            rows = _spread(batch.reshape(-1, batch.shape[-1]), self._rows)
            return rows[:, self._inputs], F.linear(rows[:, self._gone], self._weight)
        batch = _padded(module, batch)
        how = {"stride": module.stride, "dilation": module.dilation}
        places = F.conv2d(batch[:1, self._gone], self._weight, **how)[0, 0].numel()
        batch = _spread(batch, 4 * -(-self._rows // places))  # unfolded, all of them may be gigabytes
        x = F.unfold(batch[:, self._inputs], module.kernel_size, **how).transpose(1, 2)
        r = F.conv2d(batch[:, self._gone], self._weight, **how).flatten(2).transpose(1, 2)
        return _spread(x.reshape(-1, x.shape[2]), self._rows), _spread(r.reshape(-1, r.shape[2]), self._rows)

    def apply(self, layer: Any) -> None:
        """Give ``layer``, which is this one after the cut, the fitted weights."""
        x, r = self._x / self._count, self._r / self._count
        variance = self._xx / self._count - torch.outer(x, x)
        covariance = self._rx / self._count - torch.outer(r, x)
        ridge = RIDGE * variance.diagonal().mean().clamp(min=1e-12)
        change = torch.linalg.solve(variance + ridge * torch.eye(len(x), dtype=x.dtype), covariance.T).T
        layer.weight += change.reshape(layer.weight.shape).to(layer.weight.dtype)
        if layer.bias is not None:
            layer.bias += (r - change @ x).to(layer.bias.dtype)


def _spread(values: Tensor, count: int) -> Tensor:
    """At most ``count`` of the first dimension, evenly spread."""
    return values if len(values) <= count else values[torch.linspace(0, len(values) - 1, count).long()]


def _padded(module: nn.Conv2d, batch: Tensor) -> Tensor:
    """What the convolution slides over."""
    if isinstance(module, Conv2dSame):
        same: Tensor = pad_same(batch, list(module.kernel_size), list(module.stride), list(module.dilation))
        return same
    if module.padding == "valid":
        return batch
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(batch, module._reversed_padding_repeated_twice, mode=mode)
