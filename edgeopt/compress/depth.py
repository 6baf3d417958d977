"""Pruning in depth: whole residual blocks are taken out, those whose loss is felt least first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeopt.compress.graph import is_layer
from edgeopt.errors import ModelError
from edgeopt.models.modes import evaluating, hooked

#: What a dropped block is called in a pruning history: ``[module, DROP]``.
DROP = "drop"


class Skip(nn.Module):
    """Where a block was: what comes in goes out, whatever else the network hands its blocks (BEiT and EVA do)."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        """``x`` as it is."""
        return x


@dataclass(frozen=True)
class BlockCost:
    """A block that could go, and the loss of the network without it, untrained."""

    name: str
    loss: float


def residual_blocks(model: nn.Module, example: Tensor) -> list[str]:
    """The innermost modules that add something to their input and pass it on in the same shape, in order of execution.

    Found by trying: with every parameter of such a block at zero, what comes out is what went in. ``example`` is one
    batch (N, C, H, W); the model is run on it in evaluation mode.
    """
    inputs: dict[str, Tensor] = {}
    candidates = [
        (name, module)
        for name, module in model.named_modules()
        if name and not is_layer(module) and any(is_layer(inner) for inner in module.modules())
    ]
    # Blocks add to their input in place: what goes in is kept before they do.
    handles = [module.register_forward_pre_hook(_keep(inputs, name)) for name, module in candidates]
    shapes: dict[str, torch.Size] = {}
    handles += [module.register_forward_hook(_shape(shapes, name)) for name, module in candidates]
    with hooked(handles), torch.no_grad(), evaluating(model):
        model(example)
    order = list(inputs)
    found = [
        name
        for name, module in candidates
        if name in inputs and shapes.get(name) == inputs[name].shape and _passes_on(module, inputs[name])
    ]
    inner = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    return sorted(inner, key=order.index)


def _keep(inputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, given: tuple[object, ...]) -> None:
        if len(given) == 1 and isinstance(given[0], Tensor):
            inputs.setdefault(name, given[0].detach().clone())

    return hook


def _shape(shapes: dict[str, torch.Size], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, _given: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor):
            shapes.setdefault(name, output.shape)

    return hook


def _passes_on(module: nn.Module, given: Tensor) -> bool:
    """Whether the block gives back what it gets once it adds nothing."""
    idle = copy.deepcopy(module).eval()
    with torch.no_grad():
        for parameter in idle.parameters():
            parameter.zero_()
        return bool(torch.equal(idle(given.clone()), given))


def drop_block(model: nn.Module, name: str) -> None:
    """Replace the block by nothing, in place; raises ModelError where there is none."""
    parent, _, own = name.rpartition(".")
    try:
        block = model.get_submodule(name)
    except AttributeError:
        block = None
    if block is None or isinstance(block, Skip):
        raise ModelError(
            f"pruning history: this model has no block {name} to drop",
            fix="use the architecture.json of this very model, or prune it again: edgeopt compress --drop-blocks N",
        )
    setattr(model.get_submodule(parent), own, Skip())


def rank_blocks(model: nn.Module, example: Tensor, loss_of: Callable[[nn.Module], float]) -> list[BlockCost]:
    """Every block that could go, the one whose absence costs the least loss first; ``model`` stays as it is."""
    costs = []
    for name in residual_blocks(model, example):
        without = copy.deepcopy(model)
        drop_block(without, name)
        costs.append(BlockCost(name, loss_of(without)))
    return sorted(costs, key=lambda cost: cost.loss)


def dropped(names: Sequence[str]) -> list[list[str]]:
    """The pruning history of these blocks' removal."""
    return [[name, DROP] for name in names]
