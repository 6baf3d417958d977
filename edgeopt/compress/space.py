"""The widths a network could have: what each group of channels may lose, and how much importance goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgeopt.compress.channels import Group, at_ratio

#: How many units each group loses, in the order of the groups.
Cuts: TypeAlias = tuple[int, ...]
Float64: TypeAlias = npt.NDArray[np.float64]

_OPTIONS = 16  # widths tried of each group; wide layers have many more, and they differ little


@dataclass(frozen=True)
class WidthSpace:
    """The groups of one network and its compute layers (those with MACs), in a fixed order."""

    groups: Sequence[Group]
    layers: tuple[str, ...]
    _lost: tuple[Float64, ...] = field(init=False, repr=False)
    _effects: tuple[Float64, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # By group: the importance that is gone with the least important 0, 1, 2, ... units.
        lost = tuple(
            np.concatenate([[0.0], np.cumsum(group.scores[group.order].double().numpy() * group.mean)])
            for group in self.groups
        )
        object.__setattr__(self, "_lost", lost)
        # By group: what it takes from (layers, 2) shares when all its units go.
        index = {name: row for row, name in enumerate(self.layers)}
        effects = []
        for group in self.groups:
            effect = np.zeros((len(self.layers), 2))
            for name, is_output, share in group.touched:
                if name in index:
                    effect[index[name], int(is_output)] += share
            effects.append(effect)
        object.__setattr__(self, "_effects", tuple(effects))

    @property
    def full(self) -> Cuts:
        """Nothing cut."""
        return (0,) * len(self.groups)

    @property
    def smallest(self) -> Cuts:
        """Everything cut that may be."""
        return self.at_ratio(1.0)

    def at_ratio(self, ratio: float) -> Cuts:
        """One ratio (0-1) of every kind of group, the least important channels first."""
        return tuple(at_ratio(self.groups, ratio))

    def plan(self, cuts: Cuts) -> list[tuple[Group, int]]:
        """As pruning takes it."""
        return [(group, units) for group, units in zip(self.groups, cuts, strict=True) if units]

    def lost(self, index: int, units: int) -> float:
        """Importance that is gone when the group loses that many units."""
        return float(self._lost[index][units])

    def kept(self, cuts: Cuts) -> float:
        """The share (0-1) of the groups' importance that is left."""
        total = sum(float(lost[-1]) for lost in self._lost)
        gone = sum(self.lost(index, units) for index, units in enumerate(cuts))
        return 1 - gone / total if total else 0.0

    def options(self, index: int) -> list[int]:
        """Cuts of one group that leave widths the kernels like, from none to the most, at most 17 of them."""
        group = self.groups[index]
        return sorted({0, *(group.cut(round(group.most * part / _OPTIONS)) for part in range(1, _OPTIONS + 1))})

    def shares(self, cuts: Cuts) -> Float64:
        """float64 (layers, 2): the shares of each layer's inputs and outputs that are left."""
        left = np.ones((len(self.layers), 2))
        for index, units in enumerate(cuts):
            if units:
                left -= self._effects[index] * (units / len(self.groups[index].scores))
        return left

    def survey(self, count: int, *, seed: int = 0) -> list[Cuts]:
        """``count`` configurations to time: the full and the smallest, global ratios, and each group on its own terms.

        A table learns little from ratios alone, where all layers shrink together: in half of the configurations every
        group's width is drawn for itself, evenly between its narrowest and its widest.
        """
        rng = np.random.default_rng(seed)
        alike = max(2, count // 2)
        found = [self.at_ratio(ratio) for ratio in np.linspace(0.0, 1.0, alike)]
        for _ in range(count - alike):
            found.append(tuple(int(rng.choice(self.options(index))) for index in range(len(self.groups))))
        return list(dict.fromkeys(found))
