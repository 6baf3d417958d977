"""``edgeopt bench``: measure accuracy, latency and memory against the original model."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, on_option, options_of, output_options, pick_run, run_option, trust_option
from edgeopt.cli.report_cmd import finish, read_budget
from edgeopt.config import BenchConfig, validate


@click.command("bench")
@click.option(
    "--target", "targets", multiple=True, help="Only engines of this target; may be repeated. [default: all built here]"
)
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Measuring time for all engines together.")
@click.option(
    "--threads", type=int, default=0, help="Threads of every engine. [default: what the targets state, else every core]"
)
@click.option(
    "--budget",
    "budget",
    type=click.Path(path_type=Path),
    help="A TOML file with budget lines, such as max_drop_points = 1.0.",
)
@on_option
@trust_option
@run_option
@output_options
def command(
    targets: tuple[str, ...],
    seconds: float,
    threads: int,
    budget: Path | None,
    on: str | None,
    trust_engine: bool,
    run_path: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Measure every built engine against the original model, write the report, judge the budget."""
    from edgeopt.stages.bench import bench

    validate(BenchConfig, {"seconds": seconds, "threads": threads}, where="bench options")
    console, limits = Terminal(quiet=quiet), read_budget(budget)  # a wrong budget is said before measuring
    run = pick_run(run_path, console)
    if on is not None:
        from edgeopt.remote import run_on

        typed = options_of(target=targets, seconds=seconds, threads=threads, trust_engine=trust_engine)
        run_on(run, on, ["bench", *typed], ok=(0, 3, 4, 5), console=console)  # budgets are judged here
        return finish(run, limits, as_json=as_json)
    bench(run, targets=targets, seconds=seconds, threads=threads, trust_engine=trust_engine, console=console)
    return finish(run, limits, as_json=as_json)
