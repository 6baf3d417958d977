"""What was pruned from a model, done again to a fresh one: blocks, heads and channels, from its JSON history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from edgeopt.compress.depth import DROP, drop_block
from edgeopt.compress.graph import bounded, trace
from edgeopt.compress.heads import HEADS, drop_heads
from edgeopt.errors import ModelError

#: Acts in order: ``[module, whether its outputs, channels]`` cuts channels, ``[block, "drop"]`` drops a residual block,
#: ``[attention, "heads", which]`` some of its heads.
History: TypeAlias = list[Any]

_OTHER_HISTORY = "use the architecture.json of this very model, or prune it again: edgeopt compress --prune F --force"


def replay(model: nn.Module, history: Sequence[Any], *, example: Tensor | None = None) -> nn.Module:
    """``model``, freshly built, with the blocks and channels of ``history`` removed again, in place.

    Weights do not matter. ``example`` is a picture (1, C, H, W); by default the model's own input size, else 64 px. The
    model comes back in evaluation mode. Raises ModelError when the history is not of this model.
    """
    example = _default_example(model) if example is None else example
    model.eval()
    graph: Any = None
    for act in history:
        if act[1] == DROP:
            drop_block(model, act[0])
            graph = None
            continue
        if act[1] == HEADS:
            drop_heads(model, act[0], act[2])
            graph = None
            continue
        graph = trace(model, example) if graph is None else graph
        _cut(graph, model, *act)
    return model


def _cut(graph: Any, model: nn.Module, name: str, outputs: bool, channels: Sequence[int]) -> None:
    module = dict(model.named_modules()).get(name)
    if module is None or module not in graph.module2node or not channels:
        raise ModelError(f"pruning history: this model has no channels to cut in {name}", fix=_OTHER_HISTORY)
    pruner = graph.get_pruner_of_module(module)
    width = graph.get_out_channels(module) if outputs else graph.get_in_channels(module)
    if width is None or len(set(channels)) != len(channels) or not 0 <= min(channels) <= max(channels) < width:
        raise ModelError(f"pruning history: {name} does not have the channels to cut", fix=_OTHER_HISTORY)
    with bounded(graph):
        group = graph.get_pruning_group(
            module, pruner.prune_out_channels if outputs else pruner.prune_in_channels, list(channels)
        )
    if not graph.check_pruning_group(group):
        raise ModelError(f"pruning history: nothing would be left of {name}", fix=_OTHER_HISTORY)
    group.prune(record_history=False)


def _default_example(model: nn.Module) -> Tensor:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    size = tuple(cfg["input_size"][1:]) if cfg.get("fixed_input_size") else (64, 64)
    return torch.zeros(1, channels, *size)
