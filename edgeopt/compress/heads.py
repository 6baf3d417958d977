"""Attention heads taken out of vision transformers, those that are missed least first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeopt.errors import ModelError

#: What dropped heads are called in a pruning history: ``[attention, HEADS, which]``.
HEADS = "heads"


@dataclass(frozen=True)
class HeadCost:
    """One head of one attention, and the loss of the network without it, untrained."""

    name: str
    head: int
    loss: float


def attentions(model: nn.Module) -> dict[str, Any]:
    """Attention modules whose heads can go: timm's, with queries, keys and values in one linear layer."""
    return {name: module for name, module in model.named_modules() if _is_separable(module)}


def _is_separable(module: Any) -> bool:
    heads, width = getattr(module, "num_heads", None), getattr(module, "attn_dim", None)
    qkv, projection = getattr(module, "qkv", None), getattr(module, "proj", None)
    return (
        isinstance(heads, int)
        and isinstance(width, int)
        and heads * getattr(module, "head_dim", 0) == width
        and isinstance(qkv, nn.Linear)
        and qkv.out_features == 3 * width
        and isinstance(projection, nn.Linear)
        and projection.in_features == width
        and getattr(module, "gate", None) is None
        and isinstance(getattr(module, "norm", None), nn.Identity)
    )


def drop_heads(model: nn.Module, name: str, gone: Sequence[int]) -> None:
    """Cut the heads ``gone`` (numbers) out of the attention ``name``, in place; ModelError where there are none."""
    attention = attentions(model).get(name)
    heads = attention.num_heads if attention is not None else 0
    kept = [head for head in range(heads) if head not in gone]
    if attention is None or not kept or not gone or len(kept) + len(gone) != heads:
        raise ModelError(
            f"pruning history: {name} does not have the attention heads to drop",
            fix="use the architecture.json of this very model, or prune it again: edgeopt compress --drop-heads N",
        )
    size = attention.head_dim
    inner = torch.cat([torch.arange(head * size, (head + 1) * size) for head in kept])
    # Rows are all queries, then all keys, then all values, each in the order of the heads.
    rows = torch.cat([inner + part * attention.attn_dim for part in range(3)])
    attention.qkv = _linear(attention.qkv, rows=rows)
    attention.proj = _linear(attention.proj, columns=inner)
    attention.num_heads, attention.attn_dim = len(kept), len(kept) * size


def _linear(layer: nn.Linear, *, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> nn.Linear:
    """A linear layer of some of another's outputs or inputs."""
    weight, bias = layer.weight.detach(), layer.bias.detach() if layer.bias is not None else None
    if rows is not None:
        weight, bias = weight[rows], bias[rows] if bias is not None else None
    if columns is not None:
        weight = weight[:, columns]
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    made.weight.data.copy_(weight)
    if bias is not None:
        made.bias.data.copy_(bias)
    return made


def rank_heads(model: nn.Module, loss_of: Callable[[nn.Module], float]) -> list[HeadCost]:
    """Every head, the one whose absence alone costs the least loss first; ``model`` stays as it is.

    Attentions that cannot do without one are left out: the network holds a table with a row for each head (ViT-RoPE).
    """
    costs: list[HeadCost] = []
    for name, attention in attentions(model).items():
        try:
            costs += [
                HeadCost(name, head, loss_of(_without(model, name, head)))
                for head in range(attention.num_heads if attention.num_heads > 1 else 0)
            ]
        except RuntimeError:
            continue
    return sorted(costs, key=lambda cost: cost.loss)


def _without(model: nn.Module, name: str, head: int) -> nn.Module:
    without = copy.deepcopy(model)
    drop_heads(without, name, [head])
    return without


def choose_heads(model: nn.Module, ranked: Sequence[HeadCost], count: int) -> list[list[Any]]:
    """The history of dropping ``count`` heads in that order; every attention keeps one. Raises ModelError."""
    ranks = {cost.name for cost in ranked}
    left = {name: one.num_heads for name, one in attentions(model).items() if name in ranks or one.num_heads == 1}
    gone: dict[str, list[int]] = {}
    for cost in ranked:
        if sum(map(len, gone.values())) < count and left[cost.name] > 1:
            gone.setdefault(cost.name, []).append(cost.head)
            left[cost.name] -= 1
    most = sum(map(len, gone.values()))
    if not left:
        raise ModelError(
            "the model has no attention whose heads can be dropped, which are those of timm's own Attention",
            fix="leave out --drop-heads; --prune F cuts channels",
        )
    if most < count:
        raise ModelError(
            f"{count} attention heads cannot be dropped: {most} can, since every attention keeps one",
            fix=f"ask for at most {most}" if most else "leave out --drop-heads; --prune F cuts channels",
        )
    return [[name, HEADS, sorted(heads)] for name, heads in gone.items()]
