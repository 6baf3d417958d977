"""The page that shows what was found: thumbnails inside it, worst first, nothing asked of the network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

from PIL import Image

from edgeopt.data.checks.issues import KINDS, Issue
from edgeopt.data.checks.result import CheckResult
from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.threads import in_threads
from edgeopt.errors import DataError
from edgeopt.preprocess import to_rgb
from edgeopt.report.page import asset, fragment

#: Of each kind so many are shown; issues.json has all.
_SHOWN = 60
_SIDE = 128
#: Kinds that are about two pictures: both are shown.
_PAIRS = frozenset({"leak", "conflict", "duplicate", "near_duplicate"})


def render(result: CheckResult, dataset: Dataset, max_pixels: int) -> str:
    """The whole page as HTML."""
    by_kind: dict[str, list[Issue]] = {kind: [] for kind in KINDS}
    for issue in result.issues:
        by_kind[issue.kind].append(issue)
    rows = {kind: _once(kind, issues) for kind, issues in by_kind.items()}
    shown = {kind: issues[:_SHOWN] for kind, issues in rows.items()}
    thumbnails = _thumbnails(dataset, (issue for issues in shown.values() for issue in issues), max_pixels)
    sections = [
        {
            "id": kind,
            "title": KINDS[kind][0],
            "note": KINDS[kind][1],
            "count": len(by_kind[kind]),
            "cut": len(rows[kind]) > _SHOWN,
            "pairs": kind in _PAIRS,
            "rows": [_row(issue, thumbnails) for issue in shown[kind]],
        }
        for kind in KINDS
        if by_kind[kind]
    ]
    most = max(result.classes.values())
    return fragment(
        "check",
        result=result,
        sections=sections,
        affected=len({issue.path for issue in result.issues}),
        left_out=len(result.left_out()),
        classes=sorted(((n, c, c / most) for n, c in result.classes.items()), key=lambda row: (-row[1], row[0])),
        style=asset("style.css"),
    )


def _once(kind: str, issues: list[Issue]) -> list[Issue]:
    """A conflict is an issue of both pictures, but one row."""
    if kind != "conflict":
        return issues
    seen: set[frozenset[str | None]] = set()
    rows = []
    for issue in issues:
        pair = frozenset({issue.path, issue.other})
        if pair not in seen:
            seen.add(pair)
            rows.append(issue)
    return rows


def _row(issue: Issue, thumbnails: dict[str, str]) -> dict[str, Any]:
    other = {"path": issue.other, "image": thumbnails.get(issue.other)} if issue.other else None
    return {"issue": issue, "image": thumbnails.get(issue.path), "other": other}


def _thumbnails(dataset: Dataset, issues: Iterable[Issue], max_pixels: int) -> dict[str, str]:
    """``data:`` URLs by path."""
    wanted = {path for issue in issues for path in (issue.path, issue.other) if path}
    items = [item for item in dataset.items if item.path in wanted]

    def draw(item: Item) -> str | None:
        try:
            with dataset.open(item, max_pixels=max_pixels, draft=(2 * _SIDE, 2 * _SIDE)) as image:
                small = to_rgb(image)
                small.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        except DataError:  # it was removed meanwhile; its row says the rest
            return None
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

    return {item.path: url for item, url in zip(items, in_threads(draw, items), strict=True) if url is not None}
