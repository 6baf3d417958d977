"""``edgeopt run``: all of it, as a recipe says."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, allow_undecided_option, force_option, output_options
from edgeopt.cli.report_cmd import Limits, finish
from edgeopt.errors import BudgetMissedError


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path), default=Path("edgeopt.toml"))
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="The run folder. [default: runs/NAME]")
@force_option
@allow_undecided_option
@output_options
def command(recipe: Path, run_path: Path | None, force: bool, allow_undecided: bool, as_json: bool, quiet: bool) -> int:
    """Train, compress, build, measure and report as RECIPE says; what is already made is not made again.

    Exit code 3 when a line of the budget, or what [compress] was to keep (max_drop, latency), is missed.
    """
    from edgeopt.config import load_recipe, stated_by
    from edgeopt.pipeline import run_recipe

    with stated_by(f"recipe {recipe.name}"):
        stated = load_recipe(recipe)
        run, budget, missed = run_recipe(stated, run=run_path, force=force, console=Terminal(quiet=quiet))
    code = finish(run, Limits(True, budget, allow_undecided, stated.baseline), as_json=as_json)
    for line in missed:
        click.echo(f"edgeopt: missed: {line}", err=True)
    # Whatever the budget comes to: undecided or unstable (4, 5) is less than missed.
    return BudgetMissedError.exit_code if missed else code
