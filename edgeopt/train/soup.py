"""Model soups: one model whose weights are the mean of several trained from the same start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]
Evaluate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Ranked:
    """One candidate's figures on val, alone: what ``evaluate`` says of it."""

    name: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Tried:
    """One step of the greedy soup: the ``score`` with ``name`` stirred in, and whether it stayed."""

    name: str
    score: float
    kept: bool


@dataclass(frozen=True)
class Soup:
    """``ingredients`` in the order they were added; ``state`` is the mean of their weights."""

    ingredients: tuple[str, ...]
    tried: tuple[Tried, ...]
    state: State


def rank(
    model: nn.Module, states: Mapping[str, State], evaluate: Evaluate, select: Literal["top1", "recall"] = "top1"
) -> list[Ranked]:
    """Each of ``states`` loaded into ``model`` and judged, the best first: by ``select``, then by the lower loss."""
    found = []
    for name, state in states.items():
        model.load_state_dict(state)
        found.append(Ranked(name, evaluate(model.eval())))
    return sorted(found, key=lambda one: (-one.figures[select], one.figures["loss"]))


def greedy_soup(
    model: nn.Module,
    states: Mapping[str, State],
    ranked: Sequence[Ranked],
    evaluate: Evaluate,
    *,
    select: Literal["top1", "recall"] = "top1",
    batches: Callable[[], Iterable[Tensor]],
) -> Soup:
    """Candidates in the order of ``ranked``, each added while the mean's score does not fall; left in ``model``.

    Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, recipe 1. ``batches`` gives training images as evaluation
    sees them: see :func:`mix`.
    """
    best = ranked[0]
    ingredients, score, state = [best.name], best.figures[select], dict(states[best.name])
    tried = [Tried(best.name, score, True)]
    for candidate in ranked[1:]:
        mix(model, [states[name] for name in (*ingredients, candidate.name)], batches)
        found = evaluate(model)[select]
        tried.append(Tried(candidate.name, found, found >= score))
        if found >= score:
            ingredients.append(candidate.name)
            score, state = found, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    model.eval()
    return Soup(tuple(ingredients), tuple(tried), state)


def mix(model: nn.Module, states: Sequence[State], batches: Callable[[], Iterable[Tensor]]) -> None:
    """Give ``model``, in eval mode, the mean of ``states``; BatchNorm's statistics are gathered anew from ``batches``.

    Statistics of activations do not average as weights do, because the mixed network's activations are others (Izmailov
    et al. 2018, https://arxiv.org/abs/1803.05407, section 3.2). Where all states agree on them, as with a frozen
    BatchNorm, they are left alone.
    """
    mean = average(states)
    model.load_state_dict(mean)
    model.eval()
    statistics = [name for name in mean if name.endswith(("running_mean", "running_var"))]
    if any(not torch.equal(state[name], states[0][name]) for name in statistics for state in states[1:]):
        refresh_batchnorm(model, batches())


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of every floating-point tensor, in float64 and back; counters are the first state's."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(first.dtype)
        if first.is_floating_point()
        else first.clone()
        for name, first in states[0].items()
    }


def refresh_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of every BatchNorm to their mean over ``batches``; all else stays in eval mode."""
    norms: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    before = [(module.momentum, module.training) for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a cumulative mean
        module.train()
    try:
        with torch.no_grad():
            for images in batches:
                model(images)
    finally:
        for module, (momentum, training) in zip(norms, before, strict=True):
            module.momentum = momentum
            module.train(training)
