"""``edgeopt report``: write the report and judge the budget."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgeopt.cli.common import Terminal, output_options, pick_run, run_option
from edgeopt.config import Budget, read_toml, validate
from edgeopt.files import printable
from edgeopt.run import Run


@click.command("report")
@click.option(
    "--budget",
    "budget",
    type=click.Path(path_type=Path),
    help="A TOML file with budget lines, such as max_drop_points = 1.0. [default: the recipe's]",
)
@run_option
@output_options
def command(budget: Path | None, run_path: Path | None, as_json: bool, quiet: bool) -> int:
    """Write report.html, .md, .json and junit.xml from what was measured; exit 3 when a budget is missed."""
    return finish(pick_run(run_path, Terminal(quiet=quiet)), read_budget(budget), as_json=as_json)


def read_budget(path: Path | None) -> Budget | None:
    """The budget in a TOML file: its ``[budget]`` table, or the file itself when it has none."""
    if path is None:
        return None
    values = read_toml(path)
    return validate(Budget, values.get("budget", values), where=str(path))


def finish(run: Run, budget: Budget | None, *, as_json: bool) -> int:
    """Write the report, print its table (or its JSON) and path, and return the budget's exit code."""
    from edgeopt.stages.report import report

    written = report(run, budget=budget)
    if as_json:
        click.echo(json.dumps(written.data, indent=1, ensure_ascii=False))
    else:
        click.echo(printable(written.text, keep="\n"))
        click.echo(f"report: {written.html}")
    return written.exit_code
