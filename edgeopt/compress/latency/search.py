"""The search for the best widths under a latency: survey, table, plans that are measured whole, and the choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from edgeopt.bench import BenchResult, EngineSpec
from edgeopt.compress.depth import BlockCost, dropped
from edgeopt.compress.latency.bed import Bed
from edgeopt.compress.latency.knapsack import global_ratio, knapsack
from edgeopt.compress.latency.slices import Slicer
from edgeopt.compress.latency.space import Cuts, WidthSpace
from edgeopt.compress.latency.table import Timed, fit_table, held_out_error
from edgeopt.compress.prune import History, Prunable, history_of
from edgeopt.console import NotedProgress
from edgeopt.errors import ConfigError, ModelError
from edgeopt.latency_goal import LatencyGoal
from edgeopt.preprocess import PreprocessSpec

CANDIDATES = 24
#: Of the limit: where the first plans aim, since predictions err to both sides.
_FIRST_AIM = 0.97
_CLOSE = 0.95  # a plan that takes less when measured gives importance away
_ROUNDS = 4  # plans measured at most by each way of choosing
_LEAST_SECONDS = 3.0  # for two engines: fewer windows give no interval
_REST = "unpruned"

#: Val figures of a pruned network that was not trained.
Judge = Callable[[History], Mapping[str, float]]


@dataclass
class Search:
    """What is searched for and where. ``seconds`` are for timing all candidates together; ``sizes`` are the rival's."""

    bed: Bed
    slicer: Slicer
    goal: LatencyGoal
    seconds: float
    sizes: Sequence[PreprocessSpec] = ()
    blocks: Sequence[BlockCost] = ()  # that could go, the least missed first
    built: dict[str, EngineSpec] = field(default_factory=dict)

    def engine(self, name: str, history: History, spec: PreprocessSpec | None = None) -> EngineSpec:
        """Slice, write and build one candidate."""
        path = self.bed.folder / f"{name}.onnx"
        self.slicer.write(history, path, spec.input_shape if spec else None)
        self.built[name] = self.bed.build(name, path, spec)
        return self.built[name]


@dataclass(frozen=True)
class Share:
    """A measured latency over the unpruned engine's, with its 95 % interval."""

    value: float
    low: float
    high: float
    p50_ms: float

    @classmethod
    def of(cls, result: BenchResult, name: str) -> Share:
        """From interleaved windows."""
        p50_ms = result.engines[name].p50.value
        if name == _REST:
            return cls(1.0, 1.0, 1.0, p50_ms)
        ratio = result.ratio(name, _REST)
        return cls(1 / ratio.value, 1 / ratio.high, 1 / ratio.low, p50_ms)

    def to_json(self) -> dict[str, Any]:
        """For the search's record."""
        interval = [self.low, self.high] if isfinite(self.high - self.low) else None
        return {"p50_ms": self.p50_ms, "share_of_unpruned": self.value, "share_of_unpruned_ci": interval}


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
    survey = space.survey(CANDIDATES)
    names = [_REST, *(f"candidate-{index}" for index in range(1, len(survey)))]
    for name, cuts in zip(names, survey, strict=True):
        wanted.engine(name, history_of(space.plan(cuts)))
    smaller = {f"size-{'x'.join(map(str, spec.size))}": spec for spec in wanted.sizes}
    for name, spec in smaller.items():
        wanted.engine(name, [], spec)
    result = wanted.bed.measure(list(wanted.built.values()), wanted.seconds, width=0.01, progress=progress)
    shares = {name: Share.of(result, name) for name in wanted.built}
    limit = _feasible(wanted.goal, shares, names, say)
    timed = [_timed(wanted, space, cuts, name, shares[name]) for name, cuts in zip(names, survey, strict=True)]
    error = held_out_error(timed, space.layers, found.costs)
    say(f"latency table: {error.median:.1%} off on {error.engines} engines it was not made from (median)")
    plans = [*_plans(wanted, space, timed, found.costs, limit), *_shallower(wanted, timed[0].layers, limit)]
    chosen = _choose(plans, judge, say)
    fitting = [spec for name, spec in smaller.items() if shares[name].high <= limit]
    return {
        "schema": 1,
        "goal": {"ms": wanted.goal.ms, "share": wanted.goal.share, "limit_share": limit},
        "candidates": [
            {"name": name, "kept_importance": space.kept(cuts), **shares[name].to_json()}
            for name, cuts in zip(names, survey, strict=True)
        ],
        "sizes": [{"size": list(spec.size), **shares[name].to_json()} for name, spec in smaller.items()],
        "rival_size": list(fitting[0].size) if fitting else None,
        "table_error": {"engines": error.engines, "median": error.median, "largest": error.largest},
        "plans": [{key: value for key, value in plan.items() if key != "history"} for plan in plans],
        "chosen": chosen,
    }


def _feasible(
    goal: LatencyGoal, shares: Mapping[str, Share], names: Sequence[str], say: Callable[[str], None]
) -> float:
    """The share of the unpruned engine's latency that may remain, once it is known that pruning can get there."""
    present = shares[_REST].p50_ms
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


def _timed(wanted: Search, space: WidthSpace, cuts: Cuts, name: str, share: Share) -> Timed:
    layers = wanted.bed.layer_times(wanted.built[name], space.layers)
    return Timed(space.shares(cuts), share.value, {layer: part * share.value for layer, part in layers.items()})


def _plans(
    wanted: Search, space: WidthSpace, timed: list[Timed], macs: Mapping[str, int], limit: float
) -> list[dict[str, Any]]:
    """Plans measured whole against the unpruned engine, several by each way of choosing: each attempt aims better.

    What is measured joins the table, which so gets best where it is needed.
    """
    plans = []
    for way, choose in (("knapsack", knapsack), ("global ratio", global_ratio)):
        aim = limit * _FIRST_AIM
        for attempt in range(_ROUNDS):
            table = fit_table(timed, space.layers, macs)
            cuts = choose(space, table.predict, aim)
            if cuts is None or not any(cuts):
                break
            name = f"{way.replace(' ', '-')}-{attempt}"
            plan, share = _measured(wanted, way, name, history_of(space.plan(cuts)), limit)
            predicted = table.predict(space.shares(cuts))
            plans.append({**plan, "predicted_share": predicted, "kept_importance": space.kept(cuts)})
            timed.append(_timed(wanted, space, cuts, name, share))
            if _CLOSE * limit <= share.high <= limit:
                break
            known = share.high if isfinite(share.high) else share.value
            aim *= min(max(_FIRST_AIM * limit / known, 0.7), 1.3)
    return plans


def _shallower(wanted: Search, parts: Mapping[str, float], limit: float) -> list[dict[str, Any]]:
    """The same by depth: whole blocks dropped, as many as the limit needs. ``parts``: each layer's of the latency."""
    plans: list[dict[str, Any]] = []
    names, left, count = [block.name for block in wanted.blocks], 1.0, 0
    while count < len(names) and left > limit:
        left -= sum(part for layer, part in parts.items() if layer.startswith(f"{names[count]}."))
        count += 1
    tried: set[int] = set()
    while 0 < count <= len(names) and count not in tried and len(tried) < _ROUNDS:
        tried.add(count)
        plan, _ = _measured(wanted, "depth", f"depth-{count}", dropped(names[:count]), limit)
        plans.append({**plan, "dropped": names[:count]})
        count += -1 if plan["met"] else 1
    return plans


def _measured(wanted: Search, way: str, name: str, history: History, limit: float) -> tuple[dict[str, Any], Share]:
    """A plan's engine, whole, against the unpruned one."""
    engines = [wanted.built[_REST], wanted.engine(name, history)]
    seconds = max(_LEAST_SECONDS, wanted.seconds / 8)
    share = Share.of(wanted.bed.measure(engines, seconds, width=0.01), name)
    return {"way": way, **share.to_json(), "met": share.high <= limit, "history": history}, share


def _choose(plans: list[dict[str, Any]], judge: Judge, say: Callable[[str], None]) -> dict[str, Any]:
    """The plan with the lowest val loss of those that hold the limit; raises ModelError when none does."""
    met = [plan for plan in plans if plan["met"]]
    fitting = [
        max((plan for plan in met if plan["way"] == way), key=lambda plan: float(plan["share_of_unpruned"]))
        for way in dict.fromkeys(plan["way"] for plan in met)
    ]
    if not fitting:
        nearest = min((plan["share_of_unpruned"] for plan in plans), default=1.0)
        raise ModelError(
            f"no plan held the latency when it was measured; the nearest took {nearest:.0%} of the unpruned engine",
            fix="measure on a quieter machine, ask for more, or give it time: compress.timing_seconds = 120",
        )
    for plan in fitting:
        figures = judge(plan["history"])
        plan |= {"untrained_val_loss": figures["loss"], "untrained_val_top1": figures["top1"]}
        say(
            f"{plan['way']}: {plan['share_of_unpruned']:.0%} of the unpruned latency, "
            f"val loss {figures['loss']:.3f} before recovery"
        )
    best: dict[str, Any] = min(fitting, key=lambda plan: float(plan["untrained_val_loss"]))
    return best
