"""How channels depend on each other: torch-pruning's dependency graph of a model, or a clear refusal."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import ModelError
from edgeopt.models.modes import hooked

#: A group has this many acts at most for each tie between two layers: EdgeNeXt's has 0.8, most have 0.1.
_MOST = 8
_LONGEST = 64  # times the widest layer: a flattening's list is as long as the inputs of the layer after it


@contextmanager
def quiet() -> Iterator[None]:
    """torch-pruning warns of parameters outside layers; they are handled, and the result is run before it is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        yield


def trace(model: nn.Module, example: Tensor) -> Any:
    """torch-pruning's dependency graph; raises ModelError naming the module that could not be run or followed."""
    import torch_pruning as tp

    running: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: running.append(name))
        for name, module in model.named_modules()
    ]
    handles.append(model.register_forward_hook(lambda *_: running.clear()))
    requires_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        # The graph is read off autograd's, so every parameter must take part.
        model.requires_grad_(True)
        with hooked(handles), torch.enable_grad(), quiet():
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError, ArithmeticError) as error:
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        # Once the model has run through, it is the way channels take through its reshapes that is not understood.
        where = f"at {running[-1] or type(model).__name__}" if running else f"through {type(model).__name__}"
        raise ModelError(
            f"prune: the model cannot be traced {where}: {line}",
            fix="leave out --prune (--int8 alone may do), or write that part of forward with plain torch layers",
        ) from error
    finally:
        for parameter, flag in requires_grad:
            parameter.requires_grad_(flag)
    if not any(is_layer(module) for module in graph.module2node):
        raise ModelError(
            f"prune: the model cannot be traced through {type(model).__name__}: no layer is tied to its output",
            fix="the forward pass must be plain differentiable torch, without detach() or no_grad()",
        )
    return graph


@contextmanager
def bounded(graph: Any) -> Iterator[None]:
    """Within, torch-pruning's search for coupled channels ends: what no layer could mean raises ModelError.

    Where windows of a picture are reshaped into the batch (MaxViT, CoAtNet), it takes every reshape for a flattening
    and multiplies the channels by it again and again, until memory is full. Where a block adds its input to the first
    of its channels (ReXNet), every slice shifts them again, and it comes to no end.
    """
    from torch_pruning.dependency.group import Group
    from torch_pruning.dependency.index_mapping import _FlattenIndexMapping as Flatten

    layers = [module for module in graph.module2node if is_layer(module)]
    inputs = (int(getattr(module, "in_features", getattr(module, "in_channels", 0))) for module in layers)
    longest = _LONGEST * max(*map(outputs_of, layers), *inputs)
    most = _MOST * sum(len(node.dependencies) for node in graph.module2node.values())
    flatten, add_dep = Flatten.__call__, Group.add_dep

    def call(self: Any, channels: Any) -> Any:
        if not self.reverse and len(channels) * int(self._stride) > longest:
            raise _unfollowed("reshapes")
        return flatten(self, channels)

    def add(self: Any, dep: Any, idxs: Any) -> None:
        if len(self) > most:
            raise _unfollowed("slices")
        add_dep(self, dep, idxs)

    Flatten.__call__, Group.add_dep = call, add
    try:
        yield
    finally:
        Flatten.__call__, Group.add_dep = flatten, add_dep


def _unfollowed(way: str) -> ModelError:
    return ModelError(
        f"prune: the way channels take through the model's {way} cannot be followed",
        fix="leave out --prune (--int8 alone may do)",
    )


def is_layer(module: Any) -> bool:
    """Whether the module has weights that channels are cut from."""
    return isinstance(module, (nn.Linear, nn.Conv2d))


def outputs_of(module: nn.Module) -> int:
    """How many channels or features a layer gives."""
    return int(getattr(module, "out_features", getattr(module, "out_channels", 0)))
