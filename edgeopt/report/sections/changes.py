"""Pictures to which the leading engine answers otherwise than the original: what became wrong, and what right."""

from __future__ import annotations

from edgeopt.report.changes import KINDS
from edgeopt.report.headline import champion
from edgeopt.report.model import Report
from edgeopt.report.page import fragment

TITLES = {
    "lost": "right before, wrong now",
    "gained": "wrong before, right now",
    "other": "wrong before and now, otherwise",
}


def render(report: Report) -> str:
    """A group of pictures for each kind of change; nothing when no answer changed."""
    row = champion(report)
    if row is None or not row.changes:
        return ""
    groups = [
        (TITLES[kind], shown[0].total, shown)
        for kind in KINDS
        if (shown := [one for one in row.changes if one.kind == kind])
    ]
    return fragment("changes", row=row, groups=groups, detectable=row.detectable_points)
