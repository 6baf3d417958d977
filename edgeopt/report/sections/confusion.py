"""Confusion matrices as heat maps, one an engine, switched by a menu; with many classes, the commonest confusions."""

from __future__ import annotations

from edgeopt.report.engine_row import EngineRow
from edgeopt.report.headline import champion
from edgeopt.report.model import Report
from edgeopt.report.page import fragment

MOST_CLASSES = 24
PAIRS = 15


def render(report: Report) -> str:
    """Heat maps, or lists of pairs; nothing when accuracy was not measured."""
    rows = [row for row in report.rows if row.confusion and (row.compressed or row is report.original)]
    rows = rows or [row for row in report.rows if row.confusion]
    if not rows:
        return ""
    labels = list(report.labels) or [str(index) for index in range(len(rows[0].confusion))]
    best = champion(report)
    chosen = best.key if best and best in rows else rows[0].key
    if len(labels) > MOST_CLASSES:
        lists = [{"row": row, "pairs": _pairs(row, labels)} for row in rows]
        return fragment("confusion_pairs", lists=lists, chosen=chosen, rows=rows)
    return fragment("confusion", maps=[_map(row, labels) for row in rows], chosen=chosen, rows=rows, labels=labels)


def _map(row: EngineRow, labels: list[str]) -> dict[str, object]:
    lines = []
    for true, counts in enumerate(row.confusion):
        total = sum(counts)
        cells = []
        for predicted, n in enumerate(counts):
            share = n / total if total else 0.0
            tip = f"{n} of {total} “{labels[true]}” answered “{labels[predicted]}” ({100 * share:.1f} %)"
            # Mistakes are rare: without a floor and a steeper scale, single ones would not be seen beside the diagonal.
            strength = round(share if true == predicted else min(1.0, 0.25 + 2.5 * share), 3) if n else 0
            cells.append({"n": n, "strength": strength, "right": true == predicted, "tip": tip})
        lines.append({"label": labels[true], "cells": cells})
    return {"row": row, "lines": lines}


def _pairs(row: EngineRow, labels: list[str]) -> list[dict[str, object]]:
    found = [
        (n, true, predicted)
        for true, counts in enumerate(row.confusion)
        for predicted, n in enumerate(counts)
        if n and true != predicted
    ]
    found.sort(reverse=True)
    return [
        {"n": n, "true": labels[true], "predicted": labels[predicted], "of": sum(row.confusion[true])}
        for n, true, predicted in found[:PAIRS]
    ]
