"""The search for the best widths under a latency: survey, table, plans that are measured whole, and the choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from edgeopt.bench.bed import UNPRUNED, Share, Timing
from edgeopt.compress.depth import BlockCost, dropped
from edgeopt.compress.knapsack import global_ratio, knapsack
from edgeopt.compress.latency.clocks import Clock
from edgeopt.compress.latency.table import TableError, Timed, fit_table, held_out_error
from edgeopt.compress.prune import History, Prunable, history_of
from edgeopt.compress.space import Cuts, WidthSpace
from edgeopt.console import NotedProgress
from edgeopt.errors import ConfigError, ModelError
from edgeopt.latency_goal import LatencyGoal
from edgeopt.preprocess import PreprocessSpec

#: Of the limit: where the first plans aim, since predictions err to both sides.
_FIRST_AIM = 0.97
_CLOSE = 0.95  # a plan that takes less when measured gives importance away
_ROUNDS = 4  # plans measured at most by each way of choosing

#: Val figures of a pruned network that was not trained.
Judge = Callable[[History], Mapping[str, float]]


@dataclass(frozen=True)
class Search:
    """What is searched for, and who tells latencies. ``sizes`` are the rival's inputs."""

    clock: Clock
    goal: LatencyGoal
    sizes: Sequence[PreprocessSpec] = ()
    blocks: Sequence[BlockCost] = ()  # that could go, the least missed first


def search(
    found: Prunable,
    wanted: Search,
    *,
    judge: Judge,
    say: Callable[[str], None],
    progress: NotedProgress | None = None,
) -> dict[str, Any]:
    """Time about two dozen width configurations, predict the rest, and choose; the record ``latency_search.json``.

    ``chosen.history`` is what to replay. Raises ConfigError when nothing has to go and ModelError when even the
    smallest network is too slow, naming it.
    """
    space = WidthSpace(found.groups, tuple(found.costs))
    candidates, timings = wanted.clock.survey(space, wanted.sizes, progress)
    widths = {name: one.cuts for name, one in candidates.items() if one.cuts is not None}
    smaller = {name: one.spec for name, one in candidates.items() if one.spec is not None}
    shares = {name: timing.share for name, timing in timings.items()}
    limit = _feasible(wanted.goal, shares, tuple(widths), say)
    timed = [_timed(space, cuts, timings[name]) for name, cuts in widths.items()]
    error = held_out_error(timed, space.layers, found.costs)
    say(f"latency table: {error.median:.1%} off on {error.engines} engines it was not made from (median)")
    plans = [
        *_plans(wanted, space, timed, found.costs, limit, error),
        *_shallower(wanted, space, parts_of(timings[UNPRUNED], found.costs), limit, error),
    ]
    chosen = _choose(plans, judge, say)
    fitting = [spec for name, spec in smaller.items() if shares[name].high <= limit]
    return {
        "schema": 1,
        "goal": {"ms": wanted.goal.ms, "share": wanted.goal.share, "limit_share": limit},
        "candidates": [
            {"name": name, "kept_importance": space.kept(cuts), **shares[name].to_json()}
            for name, cuts in widths.items()
        ],
        "sizes": [{"size": list(spec.size), **shares[name].to_json()} for name, spec in smaller.items()],
        "rival_size": list(fitting[0].size) if fitting else None,
        "table_error": {"engines": error.engines, "median": error.median, "largest": error.largest},
        "plans": [_kept(plan) for plan in plans],
        "chosen": chosen,
    }


def _feasible(
    goal: LatencyGoal, shares: Mapping[str, Share], names: Sequence[str], say: Callable[[str], None]
) -> float:
    """The share of the unpruned engine's latency that may remain, once it is known that pruning can get there."""
    present = shares[UNPRUNED].p50_ms
    smallest = min((shares[name] for name in names), key=lambda share: share.value)
    limit = goal.limit_of(present)
    least_ms = smallest.value * present
    say(f"latency: smallest {least_ms:.3g} ms, asked for {limit * present:.3g} ms, present {present:.3g} ms")
    if limit >= 1:
        raise ConfigError(
            f"the unpruned int8 engine takes {present:.3g} ms already, and {goal.label} was asked for",
            fix="leave out --latency: edgeopt compress --int8",
        )
    if smallest.value > limit:
        raise ModelError(
            f"pruning cannot reach {limit * present:.3g} ms: the smallest network takes {least_ms:.3g} ms, "
            f"{smallest.value:.0%} of the present {present:.3g} ms",
            fix=f"ask for more, as in --latency {smallest.value * 1.1:.2f}x, or start from a smaller model or input",
        )
    return limit


def _timed(space: WidthSpace, cuts: Cuts, timing: Timing) -> Timed:
    whole = timing.share.value
    return Timed(space.shares(cuts), whole, {layer: part * whole for layer, part in timing.layers.items()})


def _plans(
    wanted: Search, space: WidthSpace, timed: list[Timed], macs: Mapping[str, int], limit: float, error: TableError
) -> list[dict[str, Any]]:
    """Plans measured whole against the unpruned engine, several by each way of choosing: each attempt aims better.

    What is measured joins the table, which so gets best where it is needed. Where nothing can be measured any more, a
    plan stays as far below the limit as the table was off on engines it did not know.
    """
    plans = []
    for way, choose in (("knapsack", knapsack), ("global ratio", global_ratio)):
        aim = _aim(wanted, limit, error)
        for attempt in range(_ROUNDS):
            table = fit_table(timed, space.layers, macs)
            cuts = choose(space, table.predict, aim)
            if cuts is None or not any(cuts):
                break
            history = history_of(space.plan(cuts))
            timing = _measured(wanted.clock, space, f"{way.replace(' ', '-')}-{attempt}", history, limit)
            predicted = table.predict(space.shares(cuts))
            plan = _plan(way, history, limit, timing, predicted)
            plans.append({**plan, "kept_importance": space.kept(cuts)})
            if timing is None:
                break
            timed.append(_timed(space, cuts, timing))
            if _CLOSE * limit <= timing.share.high <= limit:
                break
            known = timing.share.high if isfinite(timing.share.high) else timing.share.value
            aim *= min(max(_FIRST_AIM * limit / known, 0.7), 1.3)
    return plans


def _measured(clock: Clock, space: WidthSpace, name: str, history: History, limit: float) -> Timing | None:
    """A plan measured whole, and for longer where it is just within the limit: it must hold once it is trained."""
    timing = clock.whole(space, name, history)
    if timing is not None and _CLOSE * limit <= timing.share.high <= limit and (again := clock.again(name)) is not None:
        return Timing(again, timing.layers)
    return timing


def _aim(wanted: Search, limit: float, error: TableError) -> float:
    """Where the first plans aim: what is measured can be mended, a mere prediction must have room for its error."""
    return limit * (_FIRST_AIM if wanted.clock.measures else min(_FIRST_AIM, 1 - error.median))


def parts_of(timing: Timing, costs: Mapping[str, int]) -> Mapping[str, float]:
    """Each layer's share of the latency: what the profiler said, of the MACs where there is none (TensorRT)."""
    total = sum(costs.values())
    return timing.layers or {layer: cost / total for layer, cost in costs.items()}


def _shallower(
    wanted: Search, space: WidthSpace, parts: Mapping[str, float], limit: float, error: TableError
) -> list[dict[str, Any]]:
    """The same by depth: whole blocks dropped, as many as the limit needs. ``parts``: each layer's of the latency."""
    plans: list[dict[str, Any]] = []
    names, left, count = [block.name for block in wanted.blocks], 1.0, 0
    aim = limit if wanted.clock.measures else _aim(wanted, limit, error)
    while count < len(names) and left > aim:
        left -= sum(part for layer, part in parts.items() if layer.startswith(f"{names[count]}."))
        count += 1
    tried: set[int] = set()
    while 0 < count <= len(names) and count not in tried and len(tried) < _ROUNDS:
        tried.add(count)
        history = dropped(names[:count])
        timing = _measured(wanted.clock, space, f"depth-{count}", history, limit)
        plan = _plan("depth", history, limit, timing, None if timing else left)
        plans.append({**plan, "dropped": names[:count]})
        if timing is None:
            break
        count += -1 if plan["met"] else 1
    return plans


def _plan(way: str, history: History, limit: float, timing: Timing | None, predicted: float | None) -> dict[str, Any]:
    """A plan as it is recorded: measured whole, or judged by what the table says of it."""
    measured = timing.share.to_json() if timing else dict.fromkeys(Share.NAMES)
    within = timing.share.high if timing else predicted
    met = within is not None and within <= limit
    return {"way": way, **measured, "met": met, "history": history, "predicted_share": predicted}


def _choose(plans: list[dict[str, Any]], judge: Judge, say: Callable[[str], None]) -> dict[str, Any]:
    """The plan with the lowest val loss of those that hold the limit; raises ModelError when none does."""
    met = [plan for plan in plans if plan["met"]]
    fitting = [
        max((plan for plan in met if plan["way"] == way), key=_share)
        for way in dict.fromkeys(plan["way"] for plan in met)
    ]
    if not fitting:
        nearest = min(map(_share, plans), default=1.0)
        raise ModelError(
            f"no plan held the latency when it was measured; the nearest took {nearest:.0%} of the unpruned engine",
            fix="measure on a quieter machine, ask for more, or give it time: compress.timing_seconds = 120",
        )
    for plan in fitting:
        figures = judge(plan["history"])
        plan |= {"untrained_val_loss": figures["loss"], "untrained_val_top1": figures["top1"]}
        say(
            f"{plan['way']}: {_share(plan):.0%} of the unpruned latency"
            f"{'' if plan['share_of_unpruned'] else ' by prediction'}, "
            f"val loss {figures['loss']:.3f} before recovery"
        )
    best: dict[str, Any] = min(fitting, key=lambda plan: float(plan["untrained_val_loss"]))
    return best


def _share(plan: Mapping[str, Any]) -> float:
    """Of the unpruned latency: measured, or predicted where nothing was."""
    return float(plan["share_of_unpruned"] or plan["predicted_share"])


def _kept(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Of a plan for the record: its cuts where it was among the last to choose from."""
    return {key: value for key, value in plan.items() if key != "history" or "untrained_val_loss" in plan}
