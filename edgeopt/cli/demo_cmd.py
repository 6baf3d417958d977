"""``edgeopt demo``: all of it on handwritten digits."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, force_option, output_options
from edgeopt.cli.report_cmd import Limits, finish


@click.command("demo")
@click.option(
    "--run",
    "run_path",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="The run folder.",
)
@force_option
@output_options
def command(run_path: Path, force: bool, as_json: bool, quiet: bool) -> int:
    """All of it on scikit-learn's handwritten digits: train, prune, quantize, build, measure, report."""
    from edgeopt.pipeline import demo

    run, budget, _ = demo(run_path, force=force, console=Terminal(quiet=quiet))
    # Its few hundred pictures may not decide the budget, which is said: no failure of what a newcomer types first.
    return finish(run, Limits(True, budget, True), as_json=as_json)
