"""Which layers int8 hurts: the loss of a quantized model with one layer at a time in float."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.compress.quantize import named_quantizers
from edgeopt.compress.quantizers import Quantizer
from edgeopt.models.modes import hooked


@dataclass(frozen=True)
class Sensitivity:
    """What one layer's quantizers cost: ``loss_increase`` = loss with all of them - loss with this layer's off."""

    layer: str
    loss_increase: float


def layer_sensitivity(
    model: nn.Module,
    loss: Callable[[nn.Module], float],
    *,
    example: Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> list[Sensitivity]:
    """Every int8 layer of ``model``, the one that int8 hurts most first.

    A layer is in float when its weights' quantizer and the one its input comes from pass values on unchanged; the
    latter is off for whatever else reads it too, and stays on where a pooling or padding lies between. ``loss`` gives
    the mean loss of a model on some pictures; ``example`` is a normalized float32 batch (N, 3, height, width). The
    model is left as it was.
    """
    layers = quantizers_of_layers(model, example)
    whole = loss(model)
    found = []
    for done, (layer, quantizers) in enumerate(layers.items(), 1):
        with _off(quantizers):
            found.append(Sensitivity(layer, whole - loss(model)))
        if progress is not None:
            progress(done, len(layers))
    return sorted(found, key=lambda one: -one.loss_increase)


def quantizers_of_layers(model: nn.Module, example: Tensor) -> dict[str, list[Quantizer]]:
    """Module name -> the quantizers of its weights and of its input, in the order of the forward pass."""
    owners = {parameter.data_ptr(): name.rpartition(".")[0] for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    made_by: dict[int, Quantizer] = {}
    kept: list[Tensor] = []  # no address is given to another tensor meanwhile
    entered: dict[str, int] = {}
    found: dict[str, list[Quantizer]] = {}

    def note(quantizer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(quantizer, Quantizer)
        if not quantizer.per_channel:
            kept.append(output)
            made_by[output.data_ptr()] = quantizer
        elif layer := owners.get(inputs[0].data_ptr()):
            source = made_by.get(entered.get(layer, 0))
            found[layer] = [quantizer, *([source] if source is not None else [])]

    def enter(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def reads(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                entered[name] = inputs[0].data_ptr()

        return reads

    handles: list[Any] = [quantizer.register_forward_hook(note) for _, quantizer in named_quantizers(model)]
    handles += [modules[name].register_forward_pre_hook(enter(name)) for name in dict.fromkeys(owners.values()) if name]
    with hooked(handles), torch.inference_mode():
        model(example)
    return found


@contextmanager
def _off(quantizers: list[Quantizer]) -> Iterator[None]:
    """The quantizers pass values on unchanged while the block runs."""
    for quantizer in quantizers:
        quantizer.forward = lambda x: x  # type: ignore[method-assign]
    try:
        yield
    finally:
        for quantizer in quantizers:
            del quantizer.forward
