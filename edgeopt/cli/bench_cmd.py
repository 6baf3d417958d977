"""``edgeopt bench``: measure accuracy, latency and memory against the original model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeopt.cli.common import (
    Terminal,
    allowance_options,
    baseline_option,
    budget_options,
    on_option,
    options_of,
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
@click.option("--compiled", is_flag=True, help="Time the original through torch.compile too, as another baseline.")
@click.option(
    "--throughput", is_flag=True, help="Search batches and processes for the most pictures a second of each engine."
)
@on_option
@click.option("--max-latency-ms", type=float, help="p90 of a call that the search for throughput may not pass.")
@click.option(
    "--cross-check", is_flag=True, help="Time each engine by its runtime's own tool too, such as benchmark_app."
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
    on: str | None,
    compiled: bool,
    throughput: bool,
    max_latency_ms: float | None,
    cross_check: bool,
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

    asked: dict[str, Any] = {
        "seconds": seconds,
        "width": width,
        "threads": threads,
        "compiled": compiled,
        "throughput": throughput,
    }
    asked |= {"max_latency_ms": max_latency_ms, "cross_check": cross_check}
    config = validate(BenchConfig, asked, where="bench options")
    # What is wrong with a budget or a baseline is said before measuring.
    allowance = read_allowance(baseline, slower=slower, drop_points=drop_points, larger=larger)
    limits = read_budget(budget, allow_undecided=allow_undecided, baseline=allowance)
    if baseline is not None:
        read_snapshot(Path(baseline))
    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    if on is not None:
        from edgeopt.remote import run_on

        typed = options_of(target=targets, trust_engine=trust_engine, **asked)
        run_on(run, on, ["bench", *typed], ok=(0, 3, 4, 5), console=console)  # budgets are judged here
        return finish(run, limits, as_json=as_json)
    bench(run, targets=targets, trust_engine=trust_engine, console=console, **config.model_dump())
    return finish(run, limits, as_json=as_json)
