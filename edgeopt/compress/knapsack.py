"""Which widths to take: the most importance under a cost, latency or MACs, in the manner of HALP."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgeopt.compress.space import Cuts, Float64, WidthSpace

#: Latency of shares (layers, 2), in whatever unit the limit is in.
Predict = Callable[[Float64], float]


def knapsack(space: WidthSpace, predict: Predict, limit: float) -> Cuts | None:
    """The cuts that keep the most importance while the predicted latency is at most ``limit``; None: none do.

    Shen et al. 2022 (HALP, https://arxiv.org/abs/2110.10811) value channels by Taylor importance, price them by a
    latency table and solve the knapsack. Prices here depend on the neighbours' widths, so it is solved greedily: the
    cut that costs the least importance for each unit of latency is made until the limit holds (deeper cuts compete
    too, since latency goes in stairs), and what turns out to fit again is given back, the most important first.
    """
    cuts = space.full
    now = predict(space.shares(cuts))
    while now > limit:
        best = min(_cheaper(space, predict, cuts, now), default=None)
        if best is None:
            return None
        _, now, cuts = best
    return _given_back(space, predict, cuts, limit)


def _cheaper(space: WidthSpace, predict: Predict, cuts: Cuts, now: float) -> Iterator[tuple[float, float, Cuts]]:
    """(importance lost for each unit of latency, latency then, cuts then) of every single deeper cut."""
    for index, units in enumerate(cuts):
        for option in space.options(index):
            if option <= units:
                continue
            changed = (*cuts[:index], option, *cuts[index + 1 :])
            then = predict(space.shares(changed))
            if then < now:
                lost = space.lost(index, option) - space.lost(index, units)
                yield lost / (now - then), then, changed


def _given_back(space: WidthSpace, predict: Predict, cuts: Cuts, limit: float) -> Cuts:
    order = sorted(range(len(cuts)), key=lambda index: -space.lost(index, cuts[index]))
    for index in order:
        for option in space.options(index):
            if option >= cuts[index]:
                break
            changed = (*cuts[:index], option, *cuts[index + 1 :])
            if predict(space.shares(changed)) <= limit:
                cuts = changed
                break
    return cuts


def global_ratio(space: WidthSpace, predict: Predict, limit: float) -> Cuts | None:
    """The least single ratio of every kind of group whose predicted latency is at most ``limit``; None: none does."""
    if predict(space.shares(space.smallest)) > limit:
        return None
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if predict(space.shares(space.at_ratio(middle))) <= limit:
            high = middle
        else:
            low = middle
    return space.at_ratio(high)
