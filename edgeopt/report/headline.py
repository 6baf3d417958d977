"""Picks the engine a report leads with and says in two sentences what it gains and costs, and how sure that is."""

from __future__ import annotations

from edgeopt.metrics import MIN_WINDOWS
from edgeopt.report import format as form
from edgeopt.report.engine_row import EngineRow
from edgeopt.report.model import Report

_ORDER = {"met": 0, None: 1, "not judged": 1, "undecided": 2, "unstable": 2, "missed": 3}
#: Without a budget, an engine that loses more than this is not led with while another loses less.
TOLERATED_DROP_POINTS = 1.0


def champion(report: Report) -> EngineRow | None:
    """The fastest int8 engine that keeps the budget (its accuracy, when there is none); None when nothing is known."""
    rows = [row for row in report.engines if row.compressed and row.measured]
    rows = rows or [row for row in report.engines if row.measured]

    def rank(row: EngineRow) -> tuple[int, bool, float, float]:
        lossy = row.drop_points is not None and row.drop_points > TOLERATED_DROP_POINTS
        return (_ORDER.get(row.verdict, 1), lossy, -(row.speedup or 0.0), row.drop_points or 0.0)

    return min(rows, key=rank, default=None)


def sentence(report: Report) -> str:
    """What the leading engine gains and costs."""
    row = champion(report)
    if row is None:
        return "Engines are built, but none was measured on this machine yet."
    claims = [claim for claim in (_speed(row, report), _size(row, report), _accuracy(row, report)) if claim]
    if len(claims) > 1:
        claims = [", ".join(claims[:-1]) + ("," if len(claims) > 2 else "") + f" and {claims[-1]}"]
    return f"{row.key} {claims[0]}."


def confidence(report: Report) -> str:
    """How sure the sentence is, and where it holds; empty when nothing was measured."""
    row = champion(report)
    if row is None:
        return ""
    said = []
    if row.speedup_quiet is False:
        said.append("the machine was busy with other work, so the speed has to be measured again")
    elif row.speedup_ci is None and row.speedup is not None:
        said.append("there were too few timing windows to be sure of the speed")
    elif row.speedup_starts is not None and (row.bench_starts or 0) < MIN_WINDOWS:
        spread = form.times_range(row.speedup_starts)
        said.append(f"the ratio was {spread} in {row.bench_starts} starts of the processes, and more would tell it")
    elif row.speedup_ci is not None:
        said.append(f"the ratio is {form.times_range(row.speedup_ci)} at 95 % confidence")
    if row.drop_upper_points is not None and row.pictures is not None:
        bound = form.upwards(max(row.drop_upper_points, 0.0), _digits(row))
        by = f"{form.whole(row.pictures)} test pictures"
        said.append(f"a loss over {bound} points is ruled out at 95 % confidence by {by}")
        if row.detectable_points is not None:
            seen = form.upwards(row.detectable_points, _digits(row))
            said.append(f"a true loss of {seen} would be seen by four of five such test sets")
    text = "; ".join(said)
    text = f"{text[0].upper()}{text[1:]}. " if text else ""
    return f"{text}Measured on {row.machine}." if row.machine else text.strip()


def _speed(row: EngineRow, report: Report) -> str:
    if row.speedup is None:
        return ""
    against = "the original PyTorch model" if _against_original(row, report) else str(row.baseline)
    seems = "seems" if row.speedup_quiet is False or row.speedup_ci is None else "is"
    return f"{seems} {form.times(row.speedup)} as fast as {against}"


def _size(row: EngineRow, report: Report) -> str:
    original = report.original
    if original is None or not original.size_bytes or not row.size_bytes or row.size_bytes >= original.size_bytes:
        return ""
    return f"takes {form.percent(row.size_bytes / original.size_bytes, 0)} of its space"


def _accuracy(row: EngineRow, report: Report) -> str:
    if row.top1 is None:
        return "has no measured accuracy"
    digits = _digits(row)
    found = form.percent(row.top1, digits)
    if row.drop_points is None or report.original is None:
        return f"answers {found} of {form.whole(row.pictures)} test pictures right"
    before = form.percent(report.original.top1, digits)
    if round(row.drop_points, 2) == 0:
        return f"keeps its top-1 accuracy of {before}"
    verb = "loses" if row.drop_points > 0 else "gains"
    return f"{verb} {abs(row.drop_points):.{digits}f} points of top-1 accuracy ({before} → {found})"


def _digits(row: EngineRow) -> int:
    """Decimals of shares and points: a picture of two thousand is 0.05 points."""
    return 2 if (row.pictures or 0) >= 2000 else 1


def _against_original(row: EngineRow, report: Report) -> bool:
    return report.original is not None and row.baseline == report.original.key
