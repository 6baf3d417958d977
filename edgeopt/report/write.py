"""Writes a run's report: HTML, Markdown, JSON and JUnit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeopt.config import BaselineConfig, Budget
from edgeopt.errors import EdgeoptError
from edgeopt.files import write_json, write_text
from edgeopt.report.budget import Unmeasured, exit_code, failure, judge, without
from edgeopt.report.html import render_html
from edgeopt.report.junit import render_junit
from edgeopt.report.markdown import render_markdown
from edgeopt.report.model import Report
from edgeopt.report.regression import compare
from edgeopt.report.snapshot import read_snapshot, snapshot
from edgeopt.report.table import assemble
from edgeopt.report.text import render_text


@dataclass(frozen=True)
class ReportPaths:
    """Where the report was written, and what it says."""

    html: Path
    markdown: Path
    json: Path
    junit: Path
    report: Report

    @property
    def data(self) -> dict[str, Any]:
        """The content of ``report.json``."""
        return self.report.to_json()

    @property
    def text(self) -> str:
        """The report for a terminal."""
        return render_text(self.report)

    @property
    def exit_code(self) -> int:
        """The budget's: 0 met, 3 missed, 4 unstable, 5 undecided."""
        return exit_code(self.report.budget, allow_undecided=self.report.allow_undecided)

    @property
    def failure(self) -> EdgeoptError | None:
        """The error that says what the budget does not find, None when all is well."""
        return failure(self.report.budget, allow_undecided=self.report.allow_undecided)


def write_report(
    run_path: Path,
    budget: Budget | None = None,
    *,
    baseline: BaselineConfig | None = None,
    unmeasured: Unmeasured | None = None,
) -> ReportPaths:
    """Write ``report.{html,md,json}`` and ``junit.xml`` into ``report/``, judged by ``budget`` and the targets' own.

    ``budget`` None judges nothing, an empty one the targets' own; ``baseline`` adds lines that compare with an earlier
    report; figures of ``unmeasured`` engines are shown and decide nothing. Raises RunError for damaged records and for
    a baseline of another schema or dataset, MissingStageError when there is no engine.
    """
    # Read first: the baseline may be the very file that is about to be written.
    before = read_snapshot(Path(baseline.report)) if baseline is not None and baseline.report else None
    report = assemble(run_path)
    if budget is not None:
        report = judge(report, budget, unmeasured=unmeasured)
    if before is not None:
        compared = compare(before, snapshot(report), baseline)
        lines = report.budget + tuple(without(unmeasured or {}, compared.lines))
        report = replace(report, budget=lines, warnings=compared.warnings)
    folder = run_path / "report"
    folder.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(
        folder / "report.html", folder / "report.md", folder / "report.json", folder / "junit.xml", report
    )
    write_text(paths.html, render_html(report))
    write_text(paths.markdown, render_markdown(report))
    write_json(paths.json, paths.data)
    write_text(paths.junit, render_junit(report))
    return paths
