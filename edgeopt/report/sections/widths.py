"""How wide each layer of a pruned network was and is, and why those that kept their width did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from edgeopt.report import format as form
from edgeopt.report.model import Report
from edgeopt.report.page import fragment


def render(report: Report) -> str:
    """A bar a layer for each pruned variant; nothing where none was pruned."""
    networks = []
    for variant, cut in report.cuts.items():
        bars = [
            {"name": layer, "before": before, "after": after, "share": round(100 * after / before, 1) if before else 0}
            for layer, (before, after) in cut["widths"].items()
        ]
        reasons: dict[str, list[str]] = defaultdict(list)
        for layer, reason in (cut.get("untouched") or {}).items():
            reasons[reason].append(layer)
        networks.append({"variant": variant, "bars": bars, "reasons": dict(reasons), "left": _left(cut)})
    return fragment("widths", networks=networks) if networks else ""


def _left(cut: Mapping[str, Any]) -> str:
    """What is left of MACs, parameters and the int8 engine's time, as a sentence; empty where a record says nothing."""
    said = [
        f"{form.count(cut[f'{what}_before'])} to {form.count(cut[f'{what}_after'])} {unit}"
        for what, unit in (("macs", "MACs"), ("parameters", "parameters"))
        if cut.get(f"{what}_before") is not None and cut.get(f"{what}_after") is not None
    ]
    if latency := cut.get("latency"):
        share = form.percent(latency["share_of_unpruned"], 0)
        if interval := latency.get("share_of_unpruned_ci"):
            share += f" ({form.percent_range(interval)})"
        said.append(f"in int8 {share} of the whole network's time on {latency['target']}, measured before training")
    return "; ".join(said)
