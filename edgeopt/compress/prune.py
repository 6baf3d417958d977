"""Structured pruning: whole channels are removed, by torch-pruning's graph, until the MACs asked for are gone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeopt.compress.channels import TOLERANCE, Group, Importance, find_groups, plan_cuts
from edgeopt.compress.graph import is_layer, outputs_of, trace
from edgeopt.compress.knapsack import knapsack
from edgeopt.compress.replay import History as History
from edgeopt.compress.replay import replay as replay
from edgeopt.compress.space import Float64, WidthSpace
from edgeopt.errors import ConfigError, ModelError, did_you_mean
from edgeopt.models.macs import count_macs, count_parameters, layer_macs
from edgeopt.models.modes import hooked

#: How many units each group loses.
Plan: TypeAlias = Sequence[tuple[Group, int]]
#: The way to spread cuts that every network knows.
ONE_RATIO = "one ratio"
#: Why a layer that could have been cut was not.
MOST_IMPORTANT = "among the most important of its kind"


@dataclass(frozen=True)
class PruneResult:
    """A pruned model and what was done to it.

    ``history`` is JSON: [module, whether its outputs were cut, channels], replayed in order by ``replay``. ``widths``
    gives every convolution's and linear layer's outputs before and after; ``untouched`` the layers whose outputs
    kept their width, with the reason.
    """

    model: nn.Module
    history: History
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    widths: dict[str, tuple[int, int]]
    untouched: dict[str, str]

    @property
    def removed(self) -> float:
        """The fraction of the MACs that is gone."""
        return 1 - self.macs_after / self.macs_before


def prune(
    model: nn.Module,
    *,
    fraction: float,
    example: Tensor,
    round_to: int = 8,
    importance: Importance = "taylor",
    gradient_batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    max_layer_fraction: float = 0.7,
    ignored: Sequence[str] = (),
) -> PruneResult:
    """A copy of ``model`` with ``fraction`` of its MACs (0 to 1, within 0.02) removed; ``model`` stays as it is.

    Channels that depend on each other go together (DepGraph, arXiv 2301.12900) and are ranked against those of
    structurally equal groups (isomorphic pruning, arXiv 2407.04616): one ratio for every kind of group, found by
    bisection on the MACs at the size of ``example`` (1, C, H, W). Kept widths are multiples of ``round_to``; no layer
    loses more than ``max_layer_fraction``. The classifier, attention and the modules named in ``ignored`` keep their
    outputs. ``importance``: weight norms "l1" or "l2", "bn_scale" (BatchNorm's factors, arXiv 1708.06519), or "taylor"
    (arXiv 1906.10771: |weight * gradient|, the gradient's root mean square over ``gradient_batches`` of pictures
    (N, C, H, W) and labels (N,)). Raises ConfigError for values that cannot be meant and ModelError for a model that
    cannot be traced or a fraction that cannot be reached, saying what can.
    """
    found = prunable(
        model,
        example=example,
        round_to=round_to,
        importance=importance,
        gradient_batches=gradient_batches,
        max_layer_fraction=max_layer_fraction,
        ignored=ignored,
    )
    return cuts(found, fraction=fraction, round_to=round_to, comparable=False)[ONE_RATIO]


@dataclass(frozen=True)
class Prunable:
    """A model whose channels were judged: ``groups`` may be cut, ``reasons`` say why the layers outside them may not.

    ``costs`` are the MACs of each layer at the size of ``example``.
    """

    model: nn.Module
    example: Tensor
    groups: list[Group]
    costs: dict[str, int]
    reasons: dict[str, str]

    def cut(self, plan: Plan) -> PruneResult:
        """A copy of the model without the planned units of each group. Raises ModelError."""
        history = history_of(plan)
        try:
            pruned = replay(copy.deepcopy(self.model), history, example=self.example)
        except ModelError as error:
            message = f"prune: {error.message.removeprefix('prune: ').removeprefix('pruning history: ')}"
            raise ModelError(message, fix="ask for less, or name that part with --ignore") from error
        _require_runs(pruned, self.model, self.example)
        return _result(self.model, pruned, history, self.example, sum(self.costs.values()), self.reasons)


def plans(
    found: Prunable, *, fraction: float, round_to: int, comparable: bool, tolerance: float = TOLERANCE
) -> dict[str, Plan]:
    """Ways to take ``fraction`` of the MACs, by name: which keeps more is to be measured, it differs by network.

    One ratio for every kind of group; and, where importances of different layers are ``comparable`` (Taylor's are
    estimates of the loss), the cuts that cost the least importance for each MAC: a knapsack as in HALP (arXiv
    2110.10811) with MACs in place of milliseconds. Raises ModelError when not even the first can be.
    """
    one = plan_cuts(found.groups, found.costs, fraction=fraction, round_to=round_to, tolerance=tolerance)
    ways: dict[str, Plan] = {ONE_RATIO: one}
    if comparable:
        space = WidthSpace(found.groups, tuple(found.costs))
        costs = np.array(list(found.costs.values()), np.float64)

        def macs(shares: Float64) -> float:
            return float((costs * shares[:, 0] * shares[:, 1]).sum())

        limit = (1 - fraction) * float(costs.sum())
        cuts = knapsack(space, macs, limit)
        if cuts is not None and limit - macs(space.shares(cuts)) <= tolerance * float(costs.sum()):
            ways["importance per MAC"] = space.plan(cuts)
    return ways


def step_of(left: float, *, fraction: float, step: int, steps: int) -> tuple[float, float]:
    """What the ``step``-th of ``steps`` is to remove, and how exactly, as shares of the MACs that are there.

    ``left`` (0-1) is what the steps before it left of the MACs, ``fraction`` what all together remove. Each removes the
    same share of what is left; what rounding made one miss, the next make up for, and only the last is held to it.
    """
    wanted = (1 - fraction) ** (step / steps)
    return 1 - wanted / left, TOLERANCE / left if step == steps else 1.0


def cuts(
    found: Prunable, *, fraction: float, round_to: int, comparable: bool, tolerance: float = TOLERANCE
) -> dict[str, PruneResult]:
    """What each of :func:`plans` comes to, counted; raises ModelError when none removes what was asked for."""
    _check_fraction(fraction)
    made = {
        name: found.cut(plan)
        for name, plan in plans(
            found, fraction=fraction, round_to=round_to, comparable=comparable, tolerance=tolerance
        ).items()
    }
    right = {name: result for name, result in made.items() if abs(result.removed - fraction) <= tolerance}
    if not right:
        got = made[ONE_RATIO].removed
        raise ModelError(f"prune: asked for {fraction:.1%} of the MACs, got {got:.1%}", fix=f"ask for {got:.2f}")
    return right


def prunable(
    model: nn.Module,
    *,
    example: Tensor,
    round_to: int = 8,
    importance: Importance = "taylor",
    gradient_batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    max_layer_fraction: float = 0.7,
    ignored: Sequence[str] = (),
    whole: Mapping[str, int] | None = None,
) -> Prunable:
    """What could be pruned of ``model`` and how much each channel matters; the arguments are those of :func:`prune`.

    ``whole``: widths of layers that ``max_layer_fraction`` is of, where ``model`` was cut before.
    """
    _check(round_to, importance, max_layer_fraction, gradient_batches, example)
    _check_names(model, ignored)
    example = example.to(next(model.parameters()).device)
    judged = copy.deepcopy(model).eval().requires_grad_(True)
    graph = trace(judged, example)
    costs = layer_macs(judged, example.shape)
    if importance == "taylor":
        _set_gradients(judged, gradient_batches or ())
    kept = _kept_as_they_are(judged, example, ignored)
    groups, reasons = find_groups(
        graph,
        judged,
        example=example,
        importance=importance,
        kept=kept,
        round_to=round_to,
        max_layer_fraction=max_layer_fraction,
        whole=whole or {},
    )
    return Prunable(model, example, groups, costs, reasons)


def history_of(plan: Plan) -> History:
    """What :func:`replay` needs to make the cuts of ``plan``."""
    return [[group.name, True, group.channels(units)] for group, units in plan if units]


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ConfigError(
            f"prune: the fraction of the MACs to remove must be between 0 and 1, not {fraction}",
            fix="--prune 0.3 removes 30 % of them",
        )


def _check(
    round_to: int,
    importance: str,
    max_layer_fraction: float,
    gradient_batches: Iterable[tuple[Tensor, Tensor]] | None,
    example: Tensor,
) -> None:
    if not 0 < max_layer_fraction < 1:
        raise ConfigError(
            f"prune: max_layer_fraction must be between 0 and 1, not {max_layer_fraction}",
            fix="max_layer_fraction=0.7 lets every layer keep 30 % of its channels",
        )
    if round_to < 1:
        raise ConfigError(
            f"prune: round_to must be at least 1, not {round_to}", fix="round_to=8 suits most kernels, 1 rounds nothing"
        )
    if importance not in ("l1", "l2", "bn_scale", "taylor"):
        raise ConfigError(f'prune: unknown importance "{importance}"', fix="use one of taylor, l2, l1, bn_scale")
    if importance == "taylor" and gradient_batches is None:
        raise ConfigError('prune: importance "taylor" needs gradient_batches', fix='pass some, or use "l2"')
    if example.dim() != 4 or example.shape[0] != 1:
        raise ConfigError(
            f"prune: example must be one picture (1, C, H, W), not {tuple(example.shape)}",
            fix="pass example=torch.zeros(1, C, H, W) of the model's input size",
        )


def _check_names(model: nn.Module, ignored: Sequence[str]) -> None:
    known = dict(model.named_modules())
    unknown = next((name for name in ignored if name not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"prune: no module is called {unknown}{did_you_mean(unknown, known)}",
            fix="name modules in ignored as model.named_modules() does",
        )


def _kept_as_they_are(model: nn.Module, example: Tensor, ignored: Sequence[str]) -> dict[nn.Module, str]:
    """Layers whose outputs must stay, with the reason: classifier, attention, what the caller names."""
    kept: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "num_heads", None), int):
            kept |= {m: f"part of attention {name}" for m in module.modules() if is_layer(m)}
    for name in ignored:
        kept |= {module: "ignored on request" for module in model.get_submodule(name).modules()}
    run: list[nn.Module] = []
    handles = [m.register_forward_hook(lambda one, *_: run.append(one)) for m in model.modules() if is_layer(m)]
    with hooked(handles), torch.no_grad():
        classes = model(example).shape[-1]
    # Whatever else it feeds, a layer that is run at the end and has one output a class is the classifier.
    kept |= {m: "classifier" for m in run[-2:] if outputs_of(m) == classes and m not in kept}
    return kept


def _set_gradients(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Leave in every ``.grad`` the root mean square of the loss's gradients over the batches.

    Their plain sum tends to zero where training has converged, and says nothing about a weight's importance.
    """
    squares = [torch.zeros_like(parameter) for parameter in model.parameters()]
    count = 0
    device = next(model.parameters()).device
    for pictures, labels in batches:
        model.zero_grad(set_to_none=True)
        # Contiguous: in channels_last some layers' gradients are wrong on a CPU; edgeopt.train.probe says which.
        placed = pictures.to(device, memory_format=torch.contiguous_format)
        with torch.enable_grad():
            F.cross_entropy(model(placed), labels.to(device)).backward()  # type: ignore[no-untyped-call]
        for square, parameter in zip(squares, model.parameters(), strict=True):
            if parameter.grad is not None:
                square += parameter.grad**2
        count += 1
    if count == 0:
        raise ConfigError(
            'prune: importance "taylor" got no gradient batches',
            fix="pass batches of (pictures, labels), or rank by weights: --importance l2",
        )
    for square, parameter in zip(squares, model.parameters(), strict=True):
        parameter.grad = (square / count).sqrt()


def _require_runs(pruned: nn.Module, model: nn.Module, example: Tensor) -> None:
    """Shapes are only known to agree once the model has run."""
    running: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: running.append(name))
        for name, module in pruned.named_modules()
    ]
    try:
        with hooked(handles), torch.no_grad():
            # Two pictures: a cut that mixed channels up with the batch would show.
            shape = pruned(example.expand(2, *example.shape[1:]).contiguous()).shape
            expected = copy.deepcopy(model).eval()(example).shape
    except RuntimeError as error:
        line = str(error).splitlines()[0][:200]
        raise ModelError(
            f"prune: the pruned model fails at {running[-1]}: {line}",
            fix=f"keep that part whole: --ignore {running[-1].rpartition('.')[0] or running[-1]}",
        ) from error
    if shape[1:] != expected[1:]:
        raise ModelError(
            f"prune: the classifier gave {tuple(expected[1:])} logits and gives {tuple(shape[1:])}",
            fix="compress without --prune, or name the layers that make the logits in ignored",
        )


def _result(
    model: nn.Module,
    pruned: nn.Module,
    history: History,
    example: Tensor,
    macs_before: int,
    reasons: Mapping[str, str],
) -> PruneResult:
    before, after = layer_widths(model), layer_widths(pruned)
    widths = {name: (width, after[name]) for name, width in before.items()}
    untouched = {name: reasons.get(name, MOST_IMPORTANT) for name, (width, now) in widths.items() if width == now}
    return PruneResult(
        model=pruned,
        history=history,
        macs_before=macs_before,
        macs_after=count_macs(pruned, example.shape),
        parameters_before=count_parameters(model),
        parameters_after=count_parameters(pruned),
        widths=widths,
        untouched=untouched,
    )


def layer_widths(model: nn.Module) -> dict[str, int]:
    """The outputs of every convolution and linear layer."""
    return {name: outputs_of(module) for name, module in model.named_modules() if is_layer(module)}
