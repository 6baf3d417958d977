"""Which channels may go and which should: torch-pruning's groups, ranked, until they add up to a share of the MACs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from edgeopt.compress.graph import UNFOLLOWED, bounded, groups_of, is_layer, outputs_of, quiet
from edgeopt.compress.proof import proven
from edgeopt.errors import ModelError

Importance: TypeAlias = Literal["l2", "l1", "bn_scale", "taylor"]

#: How far, as a fraction of all MACs, the result may be from what was asked.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Group:
    """Channels that go together. A unit is one channel of each of the root's ``repeats`` equal blocks."""

    root: nn.Module
    name: str
    kind: str  # groups of one kind are ranked against each other
    scores: Tensor  # (units,)
    repeats: int
    step: int  # how many units make a multiple of round_to channels
    most: int  # units that may go
    touched: tuple[tuple[str, bool, float], ...]  # layer, whether its outputs, share of that dimension in this group
    order: Tensor = field(repr=False)  # units, least important first
    mean: float = 1.0  # of the units' importance before it was divided by it, summed over the layers in the group

    def cut(self, units: int) -> int:
        """The nearest number of units that may go and leaves a multiple of ``round_to`` channels; none for none."""
        if units == 0:  # a width that is no multiple is left alone as long as nothing goes
            return 0
        total = len(self.scores)
        kept = round((total - units) / self.step) * self.step
        kept = max(kept, math.ceil((total - self.most) / self.step) * self.step)
        return max(0, total - kept)

    def channels(self, units: int) -> list[int]:
        """The root's channels that are the least important ``units``."""
        chosen = self.order[:units].tolist()
        size = len(self.scores)
        return sorted(unit + block * size for block in range(self.repeats) for unit in chosen)


def find_groups(
    graph: Any,
    model: nn.Module,
    *,
    example: Tensor,
    importance: Importance,
    kept: Mapping[nn.Module, str],
    round_to: int,
    max_layer_fraction: float,
    whole: Mapping[str, int],
) -> tuple[list[Group], dict[str, str]]:
    """The groups that may be cut, and why each layer outside them may not. ``kept`` modules keep their outputs.

    Of groups that cannot be followed on paper, those may whose cut is proven to be one at ``example`` (1, C, H, W).
    ``whole`` are the widths that layers had before earlier cuts, of which ``max_layer_fraction`` may go in all.
    """
    names = {module: name for name, module in model.named_modules()}
    finder = _Finder(graph, names, kept, _scorer(importance), round_to, max_layer_fraction, whole)
    groups: list[Group] = []
    reasons = {
        name: kept.get(module, "not reached by the trace")
        for module, name in names.items()
        if is_layer(module) and (module in kept or module not in graph.module2node)
    }
    with torch.no_grad(), quiet(), bounded(graph) as reached:
        all_groups, lost = groups_of(graph, reached)
        found = [finder.convert(group) if trusted else finder.guess(group) for group, trusted in all_groups]
        pairs = list(zip(all_groups, found, strict=True))
        doubted = [one for (_, trusted), one in pairs if isinstance(one, Group) and not trusted]
        right = {one.name for one in proven(graph, model, example, doubted)}
        for (group, trusted), one in pairs:
            if isinstance(one, Group) and (trusted or one.name in right):
                groups.append(one)
                continue
            for module in finder.made_by(group):
                if is_layer(module):
                    reasons.setdefault(names[module], UNFOLLOWED if isinstance(one, Group) else one)
        for module in filter(is_layer, lost):
            reasons.setdefault(names[module], UNFOLLOWED)
    return groups, reasons


@dataclass(frozen=True)
class _Finder:
    """Turns torch-pruning's groups into ours."""

    graph: Any
    names: Mapping[nn.Module, str]
    kept: Mapping[nn.Module, str]
    score: Any
    round_to: int
    max_layer_fraction: float
    whole: Mapping[str, int]

    def convert(self, group: Any) -> Group | str:
        """The group in our terms, or why it must stay whole."""
        fixed = self.fixed(group)
        if fixed:
            return fixed
        multiplied = next((dep.target.module for dep, _ in group if _is_multiplier(dep.target.module)), None)
        if multiplied is not None:
            return f"coupled to {self.names[multiplied]} (depthwise with several outputs a channel)"
        repeats = _repeats(group, self.graph)
        if repeats is None:
            return "its channels depend on each other across concatenations"
        scores = self.score(group)
        if scores is None:
            return "its group has no BatchNorm to judge it by"
        found = self._scored(group, scores.cpu(), repeats)
        if found.cut(found.most) == 0:
            return f"{outputs_of(found.root)} outputs cannot lose a multiple of {self.round_to}"
        return found if self._can_be_cut(found) else "torch-pruning cannot cut it"

    def guess(self, group: Any) -> Group | str:
        """The same of a group that may be wrong."""
        try:
            return self.convert(group)
        except (ModelError, LookupError, ArithmeticError, RuntimeError):
            return UNFOLLOWED

    def fixed(self, group: Any) -> str:
        """That one of its modules is to keep its outputs, where that is so."""
        fixed = next((module for module in self.made_by(group) if module in self.kept), None)
        return "" if fixed is None else f"coupled to {self.names[fixed]} ({self.kept[fixed]})"

    def made_by(self, group: Any) -> list[nn.Module]:
        """The modules whose outputs the group holds."""
        return [dep.target.module for dep, _ in group if self.graph.is_out_channel_pruning_fn(dep.handler)]

    def _scored(self, group: Any, scores: Tensor, repeats: int) -> Group:
        if repeats > 1:
            # Every block must keep the same channels: judge the k-th of each together.
            scores = scores.view(repeats, -1).mean(0)
        # In units of the group's mean, so that layers of other sizes compare. A branch that is switched off (a
        # BatchNorm whose factor starts at zero) scores zero throughout, and says nothing about its channels.
        mean = float(scores.mean())
        scores = scores / mean if mean > 0 else torch.ones_like(scores)
        touched, kind = [], []
        for dep, channels in group:
            module, outputs = dep.target.module, self.graph.is_out_channel_pruning_fn(dep.handler)
            kind.append(f"{type(dep.source.module).__name__}>{type(module).__name__}:{outputs}")
            if is_layer(module):
                width = self.graph.get_out_channels(module) if outputs else self.graph.get_in_channels(module)
                touched.append((self.names[module], outputs, len(channels) / width))
        root = group[0].dep.target.module
        once = len(scores) * self.whole.get(self.names[root], outputs_of(root)) / outputs_of(root)
        return Group(
            root=root,
            name=self.names[root],
            kind=" ".join(kind),
            scores=scores,
            repeats=repeats,
            step=self.round_to // math.gcd(self.round_to, repeats),
            most=max(0, len(scores) - math.ceil(round(once * (1 - self.max_layer_fraction), 6))),
            touched=tuple(touched),
            order=torch.argsort(scores, stable=True),
            mean=mean * max(1, len(touched)),  # torch-pruning gives the mean over the layers
        )

    def _can_be_cut(self, found: Group) -> bool:
        """Whether the largest cut leaves something of every layer and reaches (and cuts) no depthwise one twice."""
        prune_outputs = self.graph.get_pruner_of_module(found.root).prune_out_channels
        cut = self.graph.get_pruning_group(found.root, prune_outputs, found.channels(found.cut(found.most)))
        depthwise = [dep.target.module for dep, _ in cut if _is_depthwise(dep.target.module)]
        return bool(self.graph.check_pruning_group(cut)) and len(set(depthwise)) == len(depthwise)


def _scorer(importance: Importance) -> Any:
    """torch-pruning's measure; one number a channel, summed over the layers it is coupled through."""
    from torch_pruning import importance as measures

    if importance == "taylor":
        return measures.GroupTaylorImportance(normalizer=None)
    if importance == "bn_scale":
        return measures.BNScaleImportance(normalizer=None)
    return measures.GroupMagnitudeImportance(p=1 if importance == "l1" else 2, normalizer=None)


def _is_depthwise(module: Any) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1


def _is_multiplier(module: Any) -> bool:
    """A depthwise convolution that makes several outputs of each input: torch-pruning cannot cut it."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels != module.out_channels > 1


def _repeats(group: Any, graph: Any) -> int | None:
    """How many equal blocks the root's channels are in, the k-th of each bound to go together; None: no such blocks.

    Grouped convolutions and normalizations need equal blocks; concatenations that are added to each other (GhostNet)
    tie the k-th channels of their parts. The tie is found by asking for one channel and looking at what comes along.
    """
    root, width = group[0].dep.target.module, len(group[0].idxs)
    blocks = max((_blocks(dep.target.module) for dep, _ in group), default=1)
    prune_outputs = graph.get_pruner_of_module(root).prune_out_channels
    tied: tuple[int, ...] = ()
    for channel in (0, width // 3):
        probe = graph.get_pruning_group(root, prune_outputs, [channel])
        found = sorted(probe[0].idxs)
        count = len(found)
        if (
            not count
            or width % count
            or found != [channel % (width // count) + k * (width // count) for k in range(count)]
        ):
            return None
        tied = (*tied, count)
    if len(set(tied)) > 1 or (tied[0] > 1 and blocks > 1 and tied[0] != blocks) or width % blocks:
        return None
    return max(tied[0], blocks)


def _blocks(module: Any) -> int:
    """How many equal blocks a layer's channels are in: a depthwise convolution's are free.

    A split has as many as it has parts: a chunk of what is left takes as much for each.
    """
    if sizes := getattr(module, "split_sizes", None):
        return len(sizes) if len(set(sizes)) == 1 else 1
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, nn.Conv2d) and module.groups not in (1, module.out_channels):
        return module.groups
    return 1


def at_ratio(groups: Sequence[Group], ratio: float) -> list[int]:
    """Units each group loses when ``ratio`` of the units of every kind go, the least important first."""
    cuts = [0] * len(groups)
    for kind in dict.fromkeys(group.kind for group in groups):
        members = [index for index, group in enumerate(groups) if group.kind == kind]
        # Units that must stay by max_layer_fraction are not offered.
        scores = torch.cat([groups[i].scores[groups[i].order[: groups[i].most]] for i in members])
        owners = torch.cat([torch.full((groups[i].most,), i) for i in members])
        ranks = torch.cat([torch.arange(groups[i].most) / len(groups[i].scores) for i in members])
        # Equal scores go by rank within the layer, so that ties are spread over the layers.
        order = torch.argsort(ranks, stable=True)
        order = order[torch.argsort(scores[order], stable=True)]
        lost = torch.bincount(owners[order[: round(ratio * len(order))]], minlength=len(groups))
        for i in members:
            cuts[i] = groups[i].cut(int(lost[i]))
    return cuts


def _layer_shares(
    groups: Sequence[Group], cuts: Sequence[int], layers: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """By layer the shares (0-1) of its inputs and of its outputs that are left when each group loses that many units.

    A depthwise convolution's inputs stay 1: they are its outputs, and torch-pruning lists them once.
    """
    left = {name: [1.0, 1.0] for name in layers}
    for group, units in zip(groups, cuts, strict=True):
        for name, is_output, share in group.touched:
            if name in left:
                left[name][is_output] -= share * units / len(group.scores)
    return {name: (inputs, outputs) for name, (inputs, outputs) in left.items()}


def _removed(groups: Sequence[Group], cuts: Sequence[int], costs: Mapping[str, int]) -> float:
    """The fraction of the MACs that is gone when each group loses that many units: they fall with both sides."""
    left = _layer_shares(groups, cuts, costs)
    return 1 - sum(cost * left[name][0] * left[name][1] for name, cost in costs.items()) / sum(costs.values())


def plan_cuts(
    groups: Sequence[Group],
    costs: Mapping[str, int],
    *,
    fraction: float,
    round_to: int,
    tolerance: float = TOLERANCE,
) -> list[tuple[Group, int]]:
    """How many units each group loses so that ``fraction`` of the MACs goes, as nearly as rounding allows.

    ModelError where that is further than ``tolerance``, a share of all MACs, or nothing; from 1 on neither is.
    """

    def removed(cuts: Sequence[int]) -> float:
        return _removed(groups, cuts, costs)

    low, high = [0] * len(groups), at_ratio(groups, 1.0) if groups else []
    most = removed(high)
    if most < fraction - tolerance:
        raise ModelError(
            f"prune: {fraction:.0%} of the MACs cannot be removed, at most {most:.0%}",
            fix=f"ask for at most {math.floor(most * 100) / 100:.2f}"
            + (", or round widths less: --set round_to=4" if round_to > 1 else ""),
        )
    below, above = 0.0, 1.0
    for _ in range(20):
        middle = (below + above) / 2
        cuts = at_ratio(groups, middle)
        if removed(cuts) <= fraction:
            below, low = middle, cuts
        else:
            above, high = middle, cuts
    # Between two neighbouring ratios several groups may change at once: take the changes one by one.
    best = current = low
    for index in sorted(range(len(groups)), key=lambda i: removed(_changed(low, i, high[i]))):
        current = _changed(current, index, high[index])
        if abs(removed(current) - fraction) < abs(removed(best) - fraction):
            best = current
    if abs(removed(best) - fraction) > tolerance:
        raise ModelError(
            f"prune: {fraction:.0%} of the MACs cannot be removed in steps of {round_to} channels: "
            f"{removed(low):.1%} or {removed(high):.1%} can",
            fix=f"ask for {removed(best):.3f}, or round widths less: --set round_to=4",
        )
    if not any(best) and tolerance < 1:
        raise ModelError(
            f"prune: {fraction:.1%} of the MACs is less than the smallest step of {round_to} channels",
            fix="ask for more, or round widths less: --set round_to=4",
        )
    return [(group, units) for group, units in zip(groups, best, strict=True) if units > 0]


def _changed(cuts: Sequence[int], index: int, value: int) -> list[int]:
    return [value if i == index else cut for i, cut in enumerate(cuts)]
