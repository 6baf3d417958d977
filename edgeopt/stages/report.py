"""Write a run's report and judge its budget."""

from __future__ import annotations

from edgeopt.config import Budget
from edgeopt.report import ReportPaths, write_report
from edgeopt.run import Run


def report(run: Run, *, budget: Budget | None = None) -> ReportPaths:
    """Write ``report/report.{html,md,json}`` and ``junit.xml`` from the run's records, judged by ``budget``."""
    with run.lock():
        return write_report(run.path, budget or Budget())
