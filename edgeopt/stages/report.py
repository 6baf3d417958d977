"""Write a run's report and judge its budget."""

from __future__ import annotations

from edgeopt.config import Budget, validate
from edgeopt.files import read_json, write_json
from edgeopt.report import ReportPaths, write_report
from edgeopt.run import Run

_BUDGET = "budget.json"


def report(run: Run, *, budget: Budget | None = None) -> ReportPaths:
    """Write ``report/report.{html,md,json}`` and ``junit.xml`` from the run's records, judged by ``budget``.

    Without ``budget`` the one of the recipe that made the run is judged, when there was one.
    """
    with run.lock():
        return write_report(run.path, budget or kept_budget(run))


def keep_budget(run: Run, budget: Budget) -> None:
    """Note a recipe's budget in the run, so that a later ``edgeopt report`` judges it too."""
    with run.lock():
        write_json(run.path / _BUDGET, budget.model_dump(exclude_none=True))


def kept_budget(run: Run) -> Budget:
    """The budget of the recipe that made the run; an empty one when it stated none."""
    path = run.path / _BUDGET
    return validate(Budget, read_json(path), where=str(path)) if path.is_file() else Budget()
