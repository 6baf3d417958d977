"""After a cut, layers are fitted anew: what is left of their inputs shall give what all of it gave before.

A layer that lost inputs misses their part of its sum. Where what is left tells that part linearly, its weights can take
it over: least squares of what its outputs were in the whole network on the inputs it now gets, with a ridge that holds
the weights where nothing is told. Layers are fitted in the order they run, each on what those before it, fitted, now
give, so that a layer also mends what they could not (He et al. 2017, arXiv 1707.06168, section 3.3). No gradient is
needed: each layer is solved by itself, in closed form, and all of them in one pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from edgeopt.compress.replay import replay
from edgeopt.models.modes import evaluating, hooked

#: The ridge, of the mean variance of the inputs; as many times more as there are inputs for a row.
RIDGE = 1e-2
#: Rows (places in pictures) a layer is fitted on: so many times its inputs, and at least the least.
ROWS_AN_INPUT, LEAST_ROWS = 8, 16_384
#: The same of a depthwise layer, whose every channel is solved by itself.
DEPTHWISE_ROWS = 4096
#: Inputs of a layer, places of its kernel included, beyond which solving would take minutes and gigabytes.
MOST_INPUTS = 4608
#: Values of the largest map of all pictures that go through the networks at once: 0.5 GB, and up to three such maps are
#: held together.
MOST_VALUES = 2**27
#: Values that are kept of what layers gave, all together: 0.5 GB.
MOST_KEPT = 2**27
_CHUNK = 4096  # rows that are held in float64 at once
_CHANNELS = 64  # of a depthwise layer that are solved at once


@dataclass(frozen=True)
class Kept:
    """Which of a layer's channels are left: indices into those it had, in order. A depthwise layer has one input."""

    outputs: Tensor
    inputs: Tensor


def reconstruct(whole: nn.Module, cut: nn.Module, history: Sequence[Any], pictures: Iterable[Tensor]) -> int:
    """Fit in place the layers of ``cut``, which is ``whole`` after ``history``; returns how many were.

    ``pictures`` are batches (N, C, H, W) as the network takes them; where memory would not do for all, the first are
    taken. BatchNorms of ``cut`` normalize by these pictures meanwhile; their statistics are for the caller to gather
    anew. Left as they are: layers before anything was cut, grouped convolutions that are not depthwise, layers that run
    more than once, and very wide ones.
    """
    shown = _at_once(whole, pictures)
    if shown is None:
        return 0
    kept = kept_channels(whole, history, example=shown[:1])
    layers: Mapping[str, Any] = dict(whole.named_modules())
    goals = {name: _Goal(layers[name], kept[name]) for name in kept if _may_be_fitted(layers[name], kept[name])}
    fewer = max(1.0, sum(goal.values for goal in goals.values()) / MOST_KEPT)
    for goal in goals.values():
        goal.wanted = max(1, int(goal.wanted / fewer))
    # What a block or head that is gone gave is missing in no layer's inputs by number: all after it are off.
    begun = any(act[1] is not True for act in history)
    centred = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers.values())
    handles = [layers[name].register_forward_hook(goal) for name, goal in goals.items()]
    with hooked(handles), evaluating(whole), torch.no_grad():
        whole(shown)
    goals = {name: goal for name, goal in goals.items() if goal.calls == 1}
    fitted: list[str] = []

    def fit(name: str, layer: Any, inputs: tuple[Any, ...]) -> None:
        """Before the layer runs in the cut network; nothing is to be mended until something that was cut has run."""
        if (begun or fitted or goals[name].lost_inputs) and goals.pop(name).fit(layer, inputs[0], centred=centred):
            fitted.append(name)

    layers = dict(cut.named_modules())
    handles = [
        layers[name].register_forward_pre_hook(lambda layer, inputs, name=name: fit(name, layer, inputs))
        for name in goals
    ]
    with hooked(handles), _normalizing_by_what_is_shown(cut, len(shown)), torch.no_grad():
        cut(shown)
    return len(fitted)


def kept_channels(model: nn.Module, history: Sequence[Any], *, example: Tensor) -> dict[str, Kept]:
    """Of every plain or depthwise convolution and linear layer that ``history`` leaves: its outputs and inputs left.

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


def matching_outputs(model: nn.Module, history: Sequence[Any], *, example: Tensor) -> dict[str, Tensor]:
    """Of the plain layers that ``history`` leaves: which outputs are left of each that is worth comparing.

    Those are the ones that give no more channels than they take, as the ends of residual branches do: what widening
    layers give, they take up, and its maps are several times as large to compare. The last makes the logits, which a
    teacher is asked for; a depthwise one only goes on with another's channels.
    """
    kept = kept_channels(model, history, example=example)
    layers = {name: module for name, module in model.named_modules() if name in kept and not _is_depthwise(module)}
    narrowing = {name for name, module in layers.items() if module.weight.shape[0] <= module.weight.shape[1]}
    return {name: kept[name].outputs for name in list(layers)[:-1] if name in narrowing}


def _at_once(whole: nn.Module, pictures: Iterable[Tensor]) -> Tensor | None:
    """As many of the pictures, in one batch, as go through the network together."""
    batches: list[Tensor] = []
    left = 1
    for batch in pictures:
        if not batches:
            left = max(1, MOST_VALUES // _largest_map(whole, batch[:1]))
        batches.append(batch[:left])
        left -= len(batches[-1])
        if left <= 0:
            break
    return torch.cat(batches) if batches else None


def _largest_map(whole: nn.Module, picture: Tensor) -> int:
    """Values of the largest output of a layer, or input to one, for one picture."""
    sizes = [picture.numel()]

    def note(_layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        sizes.extend(value.numel() for value in (*inputs, output) if isinstance(value, Tensor))

    layers = [module for module in whole.modules() if not any(module.children())]
    with hooked([layer.register_forward_hook(note) for layer in layers]), evaluating(whole), torch.no_grad():
        whole(picture)
    return max(sizes)


def _is_plain(module: nn.Module) -> bool:
    """Whether the weight is what the layer multiplies by: no subclass that scales it first, no groups but depthwise."""
    if is_parametrized(module) or type(module) not in (nn.Linear, nn.Conv2d, Conv2dSame):
        return False
    return not isinstance(module, nn.Conv2d) or module.groups == 1 or _is_depthwise(module)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def _may_be_fitted(module: Any, kept: Kept) -> bool:
    return len(kept.outputs) > 0 and len(kept.inputs) * int(module.weight[0, 0].numel()) <= MOST_INPUTS


@contextmanager
def _normalizing_by_what_is_shown(model: nn.Module, pictures: int) -> Iterator[None]:
    """BatchNorms by the ``pictures`` that run through now, unless it is one; all else as in evaluation.

    Modes and statistics come back.
    """
    norms: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    statistics = [{name: value.clone() for name, value in module.named_buffers()} for module in norms]
    with evaluating(model):
        try:
            for module in norms:
                module.train(pictures > 1)
            yield
        finally:
            for module, values in zip(norms, statistics, strict=True):
                module.eval()
                for name, value in module.named_buffers():
                    value.copy_(values[name])


class _Goal:
    """What one layer of the whole network gave, at some places: a hook after it; then the fit of what is left of it."""

    def __init__(self, module: Any, kept: Kept) -> None:
        self._kept, self.calls = kept, 0
        self._map: tuple[int, int] | None = None  # of a convolution's output
        self._depthwise = _is_depthwise(module)
        self.lost_inputs = not self._depthwise and len(kept.inputs) < int(module.weight.shape[1])
        size = len(kept.inputs) * int(module.weight[0, 0].numel())
        self.wanted = DEPTHWISE_ROWS if self._depthwise else max(LEAST_ROWS, ROWS_AN_INPUT * size)

    @property
    def values(self) -> int:
        """How many are kept, at most."""
        return self.wanted * len(self._kept.outputs)

    def __call__(self, module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """As a hook after the layer of the whole network."""
        self.calls += 1
        if isinstance(module, nn.Conv2d):
            self._map = (int(output.shape[2]), int(output.shape[3]))
            self._all = len(output) * self._map[0] * self._map[1]
            self._places = self._spread()
            picture, place = self._divided(self._places)
            found = output.flatten(2)[picture, :, place]
        else:
            rows = output.reshape(-1, output.shape[-1])
            self._all = len(rows)
            self._places = self._spread()
            found = rows[self._places]
        self._outputs = found[:, self._kept.outputs]

    def _spread(self) -> Tensor:
        """Evenly over all places: those of the first picture, then of the next."""
        return torch.linspace(0, self._all - 1, min(self.wanted, self._all)).long()

    def _divided(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Which picture, and which place of its map."""
        assert self._map is not None
        size = self._map[0] * self._map[1]
        return places // size, places % size

    def fit(self, layer: Any, inputs: Tensor, *, centred: bool) -> bool:
        """Give ``layer``, which is this one after the cut, weights that make of ``inputs`` what it gave before.

        Whether that can be told: a linear layer over rows that the cut made fewer has others. ``centred``: what a layer
        without a bias gives is off by a constant that a BatchNorm takes out again.
        """
        if self._map is None and inputs.numel() // inputs.shape[-1] != self._all:
            return False
        centred = centred or layer.bias is not None
        padded = inputs if self._map is None else _padded(layer, inputs)
        if self._depthwise:
            for first in range(0, len(layer.weight), _CHANNELS):
                self._fit_channels(layer, padded, slice(first, first + _CHANNELS), centred=centred)
            return True
        size = layer.weight[0].numel()
        weight = layer.weight.flatten(1).double()
        sums = [torch.zeros(size), torch.zeros(len(weight)), torch.zeros(size, size), torch.zeros(len(weight), size)]
        x, r, xx, rx = (one.double() for one in sums)
        for first in range(0, len(self._places), _CHUNK):
            chosen = slice(first, first + _CHUNK)
            given = self._rows(layer, padded, self._places[chosen]).flatten(1).double()
            missing = self._outputs[chosen].double() - given @ weight.T
            if layer.bias is not None:
                missing -= layer.bias.double()
            x, r, xx, rx = x + given.sum(0), r + missing.sum(0), xx + given.T @ given, rx + missing.T @ given
        count = len(self._places)
        x, r = (x / count, r / count) if centred else (torch.zeros_like(x), torch.zeros_like(r))
        variance, covariance = xx / count - torch.outer(x, x), rx / count - torch.outer(r, x)
        change = torch.linalg.solve(variance + _ridge(variance, count), covariance.T).T
        layer.weight += change.reshape(layer.weight.shape).to(layer.weight.dtype)
        if layer.bias is not None:
            layer.bias += (r - change @ x).to(layer.bias.dtype)
        return True

    def _fit_channels(self, layer: Any, padded: Tensor, channels: slice, *, centred: bool) -> None:
        """The same for every channel by itself, whose inputs are the places of its kernel."""
        given = self._rows(layer, padded[:, channels], self._places).flatten(2).transpose(0, 1)
        weight = layer.weight[channels].flatten(1)  # given: channels, rows, kernel's places
        missing = self._outputs[:, channels].T - torch.einsum("crk,ck->cr", given, weight)
        if layer.bias is not None:
            missing -= layer.bias[channels, None]
        if centred:
            x, r = given.mean(1), missing.mean(1)
            given, missing = given - x[:, None], missing - r[:, None]
        count = len(self._places)
        variance = (given.transpose(1, 2) @ given / count).double()
        covariance = (torch.einsum("crk,cr->ck", given, missing) / count).double()
        change = torch.linalg.solve(variance + _ridge(variance, count), covariance).to(weight.dtype)
        layer.weight[channels] += change.reshape(len(change), *layer.weight.shape[1:])
        if layer.bias is not None:
            layer.bias[channels] += r - (change * x).sum(1)

    def _rows(self, layer: Any, padded: Tensor, places: Tensor) -> Tensor:
        """What the layer multiplies at the places: (rows, inputs), or (rows, inputs, kernel's height and width)."""
        if self._map is None:
            return padded.reshape(-1, padded.shape[-1])[places]
        picture, place = self._divided(places)
        width = self._map[1]
        down = (place // width * layer.stride[0])[:, None] + torch.arange(layer.kernel_size[0]) * layer.dilation[0]
        across = (place % width * layer.stride[1])[:, None] + torch.arange(layer.kernel_size[1]) * layer.dilation[1]
        found = padded[picture[:, None, None], :, down[:, :, None], across[:, None, :]]
        return found.permute(0, 3, 1, 2)


def _ridge(variance: Tensor, rows: int) -> Tensor:
    """float64 like ``variance`` (..., size, size): the weights stay where they are as far as little speaks for more."""
    size = variance.shape[-1]
    strength = RIDGE * (1 + size / rows) * variance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-12)
    return strength[..., None, None] * torch.eye(size, dtype=variance.dtype)


def _padded(module: nn.Conv2d, batch: Tensor) -> Tensor:
    """What the convolution slides over."""
    if isinstance(module, Conv2dSame):
        same: Tensor = pad_same(batch, list(module.kernel_size), list(module.stride), list(module.dilation))
        return same
    if module.padding == "valid":
        return batch
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(batch, module._reversed_padding_repeated_twice, mode=mode)
