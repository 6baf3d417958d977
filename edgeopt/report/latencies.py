"""What pruning to a latency found in a run: what was timed before training, the plan taken, and the end's verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeopt.run import Run

_PLAN = (
    *("way", "met", "p50_ms", "share_of_unpruned", "share_of_unpruned_ci"),
    *("predicted_share", "kept_importance", "untrained_val_loss"),
)
_VERDICT = (
    *("asked", "target", "verdict", "seconds_to_decide", "p50_ms", "p50_ci_ms"),
    *("share_of_unpruned", "share_of_unpruned_ci", "val_top1", "recommended"),
)


def latencies(run: Run) -> dict[str, dict[str, Any]]:
    """By variant that was pruned to a latency: what ``latency_search.json`` says, and its engines' verdicts.

    ``smallest_ms``, ``present_ms`` and ``limit_share`` say what was feasible; ``verdicts`` are of the int8 variants,
    the pruned one's first and its rival's, and empty where the end was not measured.
    """
    variants, verdicts = run.variants(), run.latency_verdicts()
    found = {}
    for name, record in variants.items():
        if search := record.get("latency_search"):
            own = [one for one in verdicts if variants.get(one, {}).get("parent") == name]
            rivals = [rival for one in own if (rival := verdicts[one].get("rival")) in verdicts]
            rows = [{"variant": one, "rival": one in rivals, **_some(verdicts[one], _VERDICT)} for one in own + rivals]
            found[name] = {**_searched(search), "verdicts": rows}
    return found


def rivals(run: Run) -> frozenset[str]:
    """The variants, float and int8, of the unpruned model at a smaller input: by how they were made, judged or not."""
    variants = run.variants()
    resized = {name for name, record in variants.items() if record.get("stage") == "resize"}
    return frozenset(resized | {name for name, record in variants.items() if record.get("parent") in resized})


def _searched(search: Mapping[str, Any]) -> dict[str, Any]:
    measured = search["candidates"]
    chosen = _some(search["chosen"], _PLAN)
    return {
        "limit_share": search["goal"]["limit_share"],
        "present_ms": measured[0]["p50_ms"],
        "smallest_ms": measured[0]["p50_ms"] * min(one["share_of_unpruned"] for one in measured),
        "engines_timed": sum(one.get("p50_ms") is not None for one in [*measured, *search["sizes"], *search["plans"]]),
        "table_error": _some(search["table_error"], ("engines", "median", "largest")),
        "plans": [{**plan, "taken": plan == chosen} for plan in (_some(one, _PLAN) for one in search["plans"])],
    }


def _some(record: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: record.get(name) for name in names}
