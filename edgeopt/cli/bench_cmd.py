"""``edgeopt bench``: measure accuracy, latency and memory against the original model."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import (
    Terminal,
    allowance_options,
    baseline_option,
    budget_options,
    output_options,
    pick_run,
    run_option,
    trust_option,
)
from edgeopt.cli.report_cmd import finish, read_allowance, read_budget
from edgeopt.config import BenchConfig, validate


@click.command("bench")
@click.option(
    "--target", "targets", multiple=True, help="Only engines of this target; may be repeated. [default: all built here]"
)
@click.option(
    "--seconds", type=float, default=20.0, show_default=True, help="Measuring time for all engines together, at most."
)
@click.option(
    "--width",
    type=float,
    default=0.03,
    show_default=True,
    help="Stop early when every ratio to the original is known to within this fraction of it.",
)
@click.option(
    "--threads", type=int, default=0, help="Threads of every engine. [default: what the targets state, else every core]"
)
@budget_options
@baseline_option
@allowance_options
@trust_option
@run_option
@output_options
def command(
    targets: tuple[str, ...],
    seconds: float,
    width: float,
    threads: int,
    budget: tuple[str, ...],
    allow_undecided: bool,
    baseline: str | None,
    slower: float | None,
    drop_points: float | None,
    larger: float | None,
    trust_engine: bool,
    run_path: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Measure every built engine against the original model, write the report, judge the budget."""
    from edgeopt.report.snapshot import read_snapshot
    from edgeopt.stages.bench import bench

    validate(BenchConfig, {"seconds": seconds, "width": width, "threads": threads}, where="bench options")
    # What is wrong with a budget or a baseline is said before measuring.
    allowance = read_allowance(baseline, slower=slower, drop_points=drop_points, larger=larger)
    limits = read_budget(budget, allow_undecided=allow_undecided, baseline=allowance)
    if baseline is not None:
        read_snapshot(Path(baseline))
    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    bench(
        run, targets=targets, seconds=seconds, width=width, threads=threads, trust_engine=trust_engine, console=console
    )
    return finish(run, limits, as_json=as_json)
