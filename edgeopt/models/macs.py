"""Multiply-accumulates and parameters of a torch model, counted on one real forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeopt.models.modes import evaluating

_aten = torch.ops.aten


def count_parameters(model: nn.Module) -> int:
    """How many learnable numbers the layers hold: weights, biases and normalization's scale and shift.

    Quantizers' own parameters (NNCF keeps them under ``__nncf_hooks``) do not count: they are not the model's.
    """
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "__nncf_hooks" not in name)


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one picture: the sum of ``layer_macs``."""
    return sum(layer_macs(model, input_shape).values())


def layer_macs(model: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Multiply-accumulates of one picture by the module that does them, in order of execution.

    ``input_shape`` is (channels, height, width), or (batch, channels, height, width) whose batch is not counted.
    A convolution costs ``output elements * in_channels / groups * kernel height * kernel width`` (transposed:
    ``input elements * out_channels / groups * kernel``), a matrix product of m*k by k*n costs ``m * k * n``, and
    attention the two products inside it. Biases, normalization, activations, pooling and quantizers cost nothing.
    The model runs once, in evaluation mode and without gradients, on zeros of batch 1; its mode is restored.
    """
    example = _zeros(model, tuple(input_shape)[-3:])
    counter = _Counter()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            enter, leave = counter.hooks(name)
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        with evaluating(model), torch.no_grad(), counter:
            model(example)
    return dict(counter.macs)


def _zeros(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(1))
    return torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds the cost of every operator that runs to the innermost module running it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[str, int] = defaultdict(int)
        self._running = [""]

    def hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(_module: nn.Module, _inputs: Any) -> None:
            self._running.append(name)

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self._running.pop()

        return enter, leave

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        cost = _COSTS.get(func._overloadpacket)
        if cost is not None:
            self.macs[self._running[-1]] += cost(args, output)
        return output


def _convolution(args: Sequence[Any], output: torch.Tensor) -> int:
    """A weight is (out, in / groups, *kernel), a transposed convolution's (in, out / groups, *kernel)."""
    picture, weight, transposed = args[0], args[1], args[6]
    return int((picture if transposed else output).numel() * prod(weight.shape[1:]))


def _product(left: int) -> Callable[[Sequence[Any], torch.Tensor], int]:
    """A matrix product whose left operand is argument number ``left``: its last dimension is summed over."""
    return lambda args, output: int(output.numel() * args[left].shape[-1])


def _attention(args: Sequence[Any], output: Any) -> int:
    """Queries (batch, heads, L, E) by keys (batch, heads, S, E), then by values (batch, heads, S, V)."""
    query, key, value = args[:3]
    return int(prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


_COSTS: dict[Any, Callable[[Sequence[Any], Any], int]] = {
    _aten.convolution: _convolution,
    _aten.mm: _product(0),
    _aten.bmm: _product(0),
    _aten.addmm: _product(1),
    _aten.baddbmm: _product(1),
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention: _attention,
    _aten._scaled_dot_product_efficient_attention: _attention,
    _aten._scaled_dot_product_cudnn_attention: _attention,
}
