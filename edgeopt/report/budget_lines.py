"""What was measured for each line of a budget, how sure it is, and what would decide where it is not sure enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt
from typing import Any

from edgeopt.bench.result import STABLE_OTHER_LOAD
from edgeopt.metrics import (
    MIN_WINDOWS,
    Interval,
    pictures_to_decide,
    seconds_to_decide,
    share_bound,
    start_medians,
    starts_differ,
)
from edgeopt.report.engine_row import EngineRow, Pair

MIB = 2**20
_NOTHING = 1e-9  # no number of pictures tells a share from another so near
_NO_LATENCY = "its latency was not measured"
_NO_ORIGINAL = "the original was not measured on these pictures"


@dataclass(frozen=True)
class Found:
    """What was measured for a line: the value, its bounds, and why there is none."""

    value: float | None
    bounds: Pair | None
    missing: str = "it was not measured"
    milliseconds: bool = False  # only true of the device that the target describes
    steady: bool = True  # False: other work on the machine may have made this
    settled: bool = True  # False: it is not known well enough to be called a measurement
    lifted: bool = False  # by a baseline that was disturbed: then even a met line says nothing
    note: str = ""  # after the figures: against what, or of which class
    unknown: str = ""  # what keeps a line from being met though every known figure is within the limit
    decide: Callable[[float], str] | None = None  # what would decide, given the limit


def find(row: EngineRow, name: str) -> Found:
    """What was measured of ``row`` for the budget line ``name``, a key of :meth:`edgeopt.config.Budget.lines`."""
    return _LINES[name](row)


def _drop(row: EngineRow) -> Found:
    bounds = None
    if row.drop_lower_points is not None and row.drop_upper_points is not None:
        bounds = (row.drop_lower_points, row.drop_upper_points)

    def decide(limit: float) -> str:
        return pictures_for_drop(limit, row.lost or 0, row.gained or 0, row.pictures or 0)

    return Found(row.drop_points, bounds, _NO_ORIGINAL, decide=decide)


def _class_drop(row: EngineRow) -> Found:
    drops = row.class_drops
    if not drops:
        return Found(None, None, _NO_ORIGINAL if row.drop_points is None else "measure again: edgeopt bench")
    worst = max(drops, key=lambda name: (drops[name]["drop_points"], drops[name]["upper_points"]))
    open_ = max(drops, key=lambda name: drops[name]["upper_points"])  # the one that is furthest from being met
    bounds = (max(one["lower_points"] for one in drops.values()), drops[open_]["upper_points"])

    def decide(limit: float) -> str:
        one = drops[open_]
        return pictures_for_drop(limit, one["lost"], one["gained"], one["n"], of=open_)

    value, note = drops[worst]["drop_points"], f" in class {worst!r}"
    return Found(value, bounds, note=note, unknown=_classes_without_pictures(row), decide=decide)


def _class_recall(row: EngineRow) -> Found:
    known = {name: one for name, one in row.per_class.items() if one.get("n") and one.get("correct") is not None}
    if not known:
        return Found(None, None)

    def bound(one: Any, confidence: float, *, upper: bool) -> float:
        return share_bound(int(one["correct"]), int(one["n"]), confidence, upper=upper)

    lows = {name: bound(one, 0.95, upper=False) for name, one in known.items()}
    # That any of so many classes falls short by chance shall have 5 %: Bonferroni, as for the drops.
    high = min(bound(one, 1 - 0.05 / len(known), upper=True) for one in known.values())
    worst = min(known, key=lambda name: (known[name]["correct"] / known[name]["n"], lows[name]))
    open_ = min(lows, key=lambda name: lows[name])

    def decide(limit: float) -> str:
        one = known[open_]
        return _pictures_for_share(limit, one["correct"] / one["n"], int(one["n"]), of=open_)

    value, note = known[worst]["correct"] / known[worst]["n"], f" in class {worst!r}"
    return Found(value, (lows[open_], high), note=note, unknown=_classes_without_pictures(row), decide=decide)


def _classes_without_pictures(row: EngineRow) -> str:
    empty = [repr(name) for name, one in row.per_class.items() if one.get("n") == 0]
    more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
    return f"no test picture is of class {', '.join(empty[:3])}{more}" if empty else ""


def _top1(row: EngineRow) -> Found:
    def decide(limit: float) -> str:
        return _pictures_for_share(limit, row.top1 or 0.0, row.pictures or 0)

    return Found(row.top1, row.top1_ci, decide=decide)


def _speedup(row: EngineRow) -> Found:
    if row.baseline_kind == "float":
        return Found(None, None, "the original was not timed beside it: state min_speedup.float instead")
    return _ratio(row, "", "it was not timed beside a baseline")


def _compiled_speedup(row: EngineRow) -> Found:
    return _ratio(row, "compiled_", "the compiled original was not timed: edgeopt bench --compiled")


def _float_speedup(row: EngineRow) -> Found:
    return _ratio(row, "float_", "it was not timed beside a baseline")


def _ratio(row: EngineRow, which: str, missing: str) -> Found:
    value, ci, quiet, starts, baseline = (
        getattr(row, f"{which}{name}")
        for name in ("speedup", "speedup_ci", "speedup_quiet", "speedup_starts", "baseline")
    )
    steady, note = quiet is not False, f" against {baseline}" if baseline else ""
    ci, decide = _known(row, value, ci, starts)
    return Found(value, ci, missing, steady=steady, lifted=not steady, note=note, decide=decide)


def _known(
    row: EngineRow, value: float | None, ci: Pair | None, starts: Pair | None
) -> tuple[Pair | None, Callable[[float], str]]:
    """What a line may count on of the interval ``ci`` where its value was between ``starts``, and what would decide."""
    wide = over_starts(ci, starts, row.bench_starts) if ci is not None else None
    if starts is None or wide == ci:
        return ci, _seconds(row, value, ci)
    said = f"starts of the processes differ ({starts[0]:.4g} to {starts[1]:.4g})"
    return wide, lambda _: f"{said}: edgeopt bench --starts {MIN_WINDOWS} would decide"


def over_starts(ci: Pair, starts: Pair | None, count: int | None) -> Pair:
    """The interval of what was between ``starts`` in ``count`` starts of the processes; None: they agree.

    Of two starts the truth is within their range in half of all sessions, within thrice it in four of five.
    """
    if starts is None or (count or 0) >= MIN_WINDOWS:
        return ci
    spread = starts[1] / starts[0]
    return ci[0] / spread, ci[1] * spread


def _milliseconds(value: str, interval: str) -> Callable[[EngineRow], Found]:
    def found(row: EngineRow) -> Found:
        figure, ci = getattr(row, value), getattr(row, interval)
        missing = _NO_LATENCY
        if value == "p99_ms" and row.p50_ms is not None:
            missing = "p99 needs 1,000 samples: give bench more --seconds"
        ci, decide = _known(row, figure, ci, _starts(row, figure))
        steady = (row.other_load_cores or 0.0) <= STABLE_OTHER_LOAD
        settled = row.stable is not False
        return Found(figure, ci, missing, milliseconds=True, steady=steady, settled=settled, decide=decide)

    return found


def _starts(row: EngineRow, figure: float | None) -> Pair | None:
    """Least and most of ``figure`` in the starts of the engine's process, as its medians have it; None: they agree."""
    windows, starts = row.window_medians_ms, row.windows_by_start
    if figure is None or not windows or not starts_differ(windows, starts):
        return None
    medians = start_medians(windows, starts)
    middle = sqrt(min(medians) * max(medians))
    return figure * min(medians) / middle, figure * max(medians) / middle


def _exact(value: str, unit: float, missing: str) -> Callable[[EngineRow], Found]:
    def found(row: EngineRow) -> Found:
        figure = getattr(row, value)
        return Found(None, None, missing) if figure is None else Found(figure / unit, (figure / unit,) * 2)

    return found


_LINES: dict[str, Callable[[EngineRow], Found]] = {
    "max_drop_points": _drop,
    "max_class_drop_points": _class_drop,
    "min_class_recall": _class_recall,
    "min_top1": _top1,
    "min_speedup": _speedup,
    "min_speedup.compiled": _compiled_speedup,
    "min_speedup.float": _float_speedup,
    "max_p50_ms": _milliseconds("p50_ms", "p50_ci_ms"),
    "max_p99_ms": _milliseconds("p99_ms", "p99_ci_ms"),
    "min_throughput_ips": _milliseconds("throughput_ips", "throughput_ci_ips"),
    "max_size_mib": _exact("size_bytes", MIB, "there is no engine"),
    "max_memory_mib": _exact("peak_memory_bytes", MIB, _NO_LATENCY),
    "min_int8_share": _exact("int8_share", 1, "there is no fusion audit"),
}


def _seconds(row: EngineRow, value: float | None, bounds: Pair | None) -> Callable[[float], str]:
    """An interval of windows narrows with the root of the time they are run for."""

    def decide(limit: float) -> str:
        if value is None or bounds is None or not row.bench_seconds:
            return "more measuring time would decide: give bench more --seconds"
        need = seconds_to_decide(Interval(value, *bounds), limit, row.bench_seconds)
        if need is None:
            return "it is at the limit"
        return f"about {rounded(need):,} s would decide: edgeopt bench --seconds N ({row.bench_seconds:.0f} s now)"

    return decide


def pictures_for_drop(limit: float, lost: int, gained: int, n: int, *, of: str | None = None) -> str:
    """How many pictures put the one-sided 95 % bound on this side of ``limit`` points, were shares to stay as they are.

    As a clause; ``n`` pictures are there, of class ``of`` where one is named, with ``lost`` and ``gained`` answers.
    """
    need = pictures_to_decide(lost, gained, n, limit) if n else None
    return "it is at the limit" if need is None else _would_decide(need, n, of)


def _pictures_for_share(limit: float, share: float, n: int, *, of: str | None = None) -> str:
    gap = abs(share - limit)
    if gap < _NOTHING or not n:
        return "it is at the limit"
    return _would_decide(max(ceil(1.96**2 * (share * (1 - share) / gap**2 + 1 / gap)), n + 1), n, of)


def _would_decide(need: int, n: int, of: str | None) -> str:
    named = f" of class {of!r}" if of is not None else ""
    return f"about {need:,} test pictures{named} would decide ({n:,} now)"


def rounded(value: float) -> int:
    """Upwards, to two digits: an estimate."""
    unit: int = 10 ** max(0, floor(log10(max(value, 1.0))) - 1)
    return ceil(value / unit) * unit
