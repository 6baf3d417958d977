"""The report of a run: what was measured, against the original, and whether it meets the budget."""

from edgeopt.report.budget import exit_code, failure, judge
from edgeopt.report.engine_row import EngineRow
from edgeopt.report.model import BudgetLine, Report
from edgeopt.report.table import assemble
from edgeopt.report.write import ReportPaths, write_report

__all__ = [
    "BudgetLine",
    "EngineRow",
    "Report",
    "ReportPaths",
    "assemble",
    "exit_code",
    "failure",
    "judge",
    "write_report",
]
