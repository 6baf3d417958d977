"""``edgeopt report``: write the report and judge the budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from edgeopt.cli.common import (
    Terminal,
    allowance_options,
    baseline_option,
    budget_options,
    emit,
    given,
    output_options,
    pick_run,
    run_option,
    settings,
)
from edgeopt.config import BaselineConfig, Budget, read_toml, validate
from edgeopt.errors import ConfigError
from edgeopt.files import printable
from edgeopt.run import Run

if TYPE_CHECKING:
    from edgeopt.report.budget import Unmeasured


class Limits(NamedTuple):
    """The budget of the command line; where none is ``stated``, the recipe's is judged."""

    stated: bool
    budget: Budget
    allow_undecided: bool = False
    baseline: BaselineConfig = BaselineConfig()


@click.command("report")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the page that compares several RUNS.")
@budget_options
@baseline_option
@allowance_options
@run_option
@output_options
def command(
    runs: tuple[Path, ...],
    out: Path | None,
    budget: tuple[str, ...],
    allow_undecided: bool,
    baseline: str | None,
    slower: float | None,
    drop_points: float | None,
    larger: float | None,
    run_path: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Write report.html, .md, .json and junit.xml from what was measured; exit 3 when a budget is missed.

    Several RUNS, such as runs/*, are compared in one table instead, as a page too with --out.
    """
    if len(runs) > 1 or (runs and out is not None):
        return _compare_runs(runs, out, as_json=as_json)
    _require_one_run(runs, run_path, out)
    run_path = run_path or (runs[0] if runs else None)
    allowance = read_allowance(baseline, slower=slower, drop_points=drop_points, larger=larger)
    limits = read_budget(budget, allow_undecided=allow_undecided, baseline=allowance)
    return finish(pick_run(run_path, Terminal(quiet=quiet)), limits, as_json=as_json)


def _require_one_run(runs: Sequence[Path], run_path: Path | None, out: Path | None) -> None:
    if runs and run_path is not None:
        raise ConfigError("a run is named twice", fix="leave out --run, or the run after `edgeopt report`")
    if out is not None:
        raise ConfigError("--out is for the page of several runs", fix="name them: edgeopt report runs/* --out FILE")


def _compare_runs(runs: Sequence[Path], out: Path | None, *, as_json: bool) -> int:
    from edgeopt.report.runs import read_runs

    table = read_runs(runs)
    emit(table.to_json(), as_json=as_json, text=table.text())
    if out is not None:
        table.write(out)
        click.echo(f"report: {out}", err=as_json)
    return 0


def read_allowance(baseline: str | None = None, **allowed: float | None) -> BaselineConfig:
    """``--baseline`` and what may be lost against it; allowances without a baseline are refused."""
    if baseline is None and given(**allowed):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given(**allowed))
        raise ConfigError(f"{names} is against an earlier report, and none is named", fix="add --baseline report.json")
    return validate(BaselineConfig, {**given(**allowed), "report": baseline}, where="baseline options")


def read_budget(
    stated: Sequence[str], *, allow_undecided: bool = False, baseline: BaselineConfig | None = None
) -> Limits:
    """What ``--budget`` says: TOML files (their ``[budget]`` table, or all of it) and lines such as ``min_top1=0.9``.

    Later ones win. Raises ConfigError for what is neither, and for wrong lines.
    """
    budget = Budget()
    for text in stated:
        if "=" in text:
            tables = settings({}, [f"budget.{text}"])
            values, where = tables["budget"], f"--budget {text}"
        else:
            values, where = read_toml(Path(text)), text
            values = values.get("budget", values)
        budget = budget.merged(validate(Budget, values, where=where))
    return Limits(bool(stated), budget, allow_undecided, baseline or BaselineConfig())


def finish(run: Run, limits: Limits, *, as_json: bool, unmeasured: Unmeasured | None = None) -> int:
    """Write the report, print its table (or its JSON) and path, and return the budget's exit code.

    Figures of ``unmeasured`` engines decide nothing.
    """
    from edgeopt.stages.report import kept_budget, report

    budget = limits.budget if limits.stated else kept_budget(run)
    if limits.allow_undecided:
        budget = budget.model_copy(update={"allow_undecided": True})
    written = report(run, budget=budget, baseline=limits.baseline, unmeasured=unmeasured)
    if as_json:
        click.echo(json.dumps(written.data, indent=1, ensure_ascii=False))
    else:
        click.echo(printable(written.text, keep="\n"))
        click.echo(f"report: {written.html}")
    return written.exit_code
