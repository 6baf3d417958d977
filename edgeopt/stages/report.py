"""Write a run's report and judge its budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeopt.config import BaselineConfig, Budget, validate
from edgeopt.files import read_json, write_json
from edgeopt.report import ReportPaths, write_report
from edgeopt.report.budget import Unmeasured
from edgeopt.report.regression import Comparison, require_same_pictures
from edgeopt.report.regression import compare as judge_against
from edgeopt.report.snapshot import read_snapshot
from edgeopt.run import Run
from edgeopt.stages.engines import labels

_BUDGET = "budget.json"


def report(
    run: Run,
    *,
    budget: Budget | None = None,
    baseline: BaselineConfig | str | None = None,
    unmeasured: Unmeasured | None = None,
) -> ReportPaths:
    """Write ``report/report.{html,md,json}`` and ``junit.xml`` from the run's records, judged by ``budget``.

    Without ``budget`` the one of the recipe that made the run is judged, when there was one. ``baseline`` is an earlier
    ``report.json`` or run folder, with what may be lost since: more is a missed line as well. What is known of
    ``unmeasured`` engines is shown and decides nothing.
    """
    if isinstance(baseline, str):
        baseline = BaselineConfig(report=baseline)
    with run.lock():
        return write_report(run.path, budget or kept_budget(run), baseline=baseline, unmeasured=unmeasured)


def compare(
    before: str | Path, after: Sequence[str | Path], *, allowance: BaselineConfig | None = None
) -> list[Comparison]:
    """Each of ``after`` against ``before``: run folders or their ``report.json``. Raises RunError when they do not fit.

    Lines of :class:`edgeopt.report.regression.Comparison` are judged like those of a budget.
    """
    first = read_snapshot(Path(before))
    return [judge_against(first, read_snapshot(Path(one)), allowance) for one in after]


def check_baseline(run: Run, baseline: str | Path) -> None:
    """Raises RunError where ``baseline`` is no report of this run's pictures; to be called before measuring."""
    require_same_pictures(read_snapshot(Path(baseline)), run.path.name, run.info["fingerprint"], labels(run))


def keep_budget(run: Run, budget: Budget) -> None:
    """Note a recipe's budget in the run, so that a later ``edgeopt report`` judges it too."""
    with run.lock():
        write_json(run.path / _BUDGET, budget.model_dump(exclude_none=True))


def kept_budget(run: Run) -> Budget:
    """The budget of the recipe that made the run; an empty one when it stated none."""
    path = run.path / _BUDGET
    return validate(Budget, read_json(path), where=str(path)) if path.is_file() else Budget()
