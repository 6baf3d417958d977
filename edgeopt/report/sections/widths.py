"""How wide each layer of a pruned network was and is, and why those that kept their width did."""

from __future__ import annotations

from collections import defaultdict

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
        networks.append({"variant": variant, "bars": bars, "reasons": dict(reasons)})
    return fragment("widths", networks=networks) if networks else ""
