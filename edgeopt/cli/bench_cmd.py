"""``edgeopt bench``: measure accuracy, latency and memory against the original model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeopt.cli.common import (
    Terminal,
    allowance_options,
    baseline_option,
    budget_options,
    emit,
    given,
    on_option,
    options_of,
    output_options,
    pick_run,
    run_option,
    trust_option,
)
from edgeopt.cli.report_cmd import finish, read_allowance, read_budget
from edgeopt.config import BenchConfig, validate
from edgeopt.errors import ConfigError
from edgeopt.run import Run

if TYPE_CHECKING:
    from edgeopt.bench import BenchResult


@click.command("bench")
@click.option(
    "--target", "targets", multiple=True, help="Only engines of this target; may be repeated. [default: all built here]"
)
@click.option(
    "--latency-candidates",
    is_flag=True,
    help="Time what compress --latency-candidates exported for this device instead; no report is written.",
)
@click.option(
    "--seconds",
    type=float,
    help="Measuring time for all engines together, at most. [default: 20; of latency candidates 60]",
)
@click.option(
    "--starts",
    type=int,
    default=2,
    show_default=True,
    help="Start all engines anew so often, each time for its share of the seconds: a process can be fast or slow.",
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
    latency_candidates: bool,
    seconds: float | None,
    starts: int,
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
    from edgeopt.stages.bench import bench
    from edgeopt.stages.report import check_baseline

    asked: dict[str, Any] = {
        **given(seconds=seconds),
        "starts": starts,
        "width": width,
        "threads": threads,
        "compiled": compiled,
        "throughput": throughput,
    }
    asked |= {"max_latency_ms": max_latency_ms, "cross_check": cross_check}
    config = validate(BenchConfig, asked, where="bench options")
    # What is wrong with a budget is said before measuring, and of a baseline once it is known for which run.
    allowance = read_allowance(baseline, slower=slower, drop_points=drop_points, larger=larger)
    limits = read_budget(budget, allow_undecided=allow_undecided, baseline=allowance)
    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    if latency_candidates:
        _require_alone(click.get_current_context())
        return _candidates(run, targets, seconds, on, as_json=as_json, console=console)
    if baseline is not None:
        check_baseline(run, baseline)
    if on is not None:
        from edgeopt.remote import run_on

        typed = options_of(target=targets, trust_engine=trust_engine, **asked)
        run_on(run, on, ["bench", *typed], ok=(0, 3, 4, 5), console=console)  # budgets are judged here
        return finish(run, limits, as_json=as_json)
    result = bench(run, targets=targets, trust_engine=trust_engine, console=console, **config.model_dump())
    return finish(run, limits, as_json=as_json, unmeasured=_unmeasured(run, result, trust_engine=trust_engine))


def _unmeasured(run: Run, result: BenchResult, *, trust_engine: bool) -> dict[str, str | None]:
    """Engines that did not run: what earlier figures say of them, or another machine's, must not pass for what they do.

    Those of another machine are left out where an int8 engine was measured here, which is then what is judged.
    """
    from edgeopt.stages.engines import built_elsewhere, engines

    known = engines(run)
    here = any(known[key].precision == "int8" for key in result.engines if key in known)
    foreign, failed = built_elsewhere(run, trust_engine=trust_engine), result.failures
    return {
        **{key: None if here else f"it was not measured here: {reason}" for key, reason in foreign.items()},
        **{key: f"it could not be measured: {reason.splitlines()[0]}" for key, reason in failed.items()},
    }


def _require_alone(context: click.Context) -> None:
    """That nothing is asked of candidates which only a run's engines can be asked."""
    fitting = {"targets", "latency_candidates", "seconds", "on", "run_path", "as_json", "quiet"}
    typed = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if others := [f"--{name.replace('_', '-')}" for name in typed if name not in fitting]:
        raise ConfigError(
            f"{', '.join(others)}: of a run's engines, and candidates for a latency are only timed",
            fix="leave them out, or --latency-candidates",
        )


def _candidates(
    run: Run, targets: tuple[str, ...], seconds: float | None, on: str | None, *, as_json: bool, console: Terminal
) -> int:
    """Time them here, or over ``on``; a line for each target."""
    from edgeopt.bench.bed import UNPRUNED
    from edgeopt.stages.candidates import bench_candidates

    if on is not None:
        from edgeopt.remote import run_on

        typed = options_of(target=targets, latency_candidates=True, seconds=seconds)
        run_on(run, on, ["bench", *typed], console=console)
        made = run.candidate_times()
    else:
        made = bench_candidates(run, targets=targets, **given(seconds=seconds), console=console)
    lines = []
    for record in made.values():
        times = [engine["p50_ms"] for engine in record["engines"].values()]
        lines.append(
            f"{record['target']}: {len(times)} candidates of {record['variant']} take {min(times):.3g} to "
            f"{max(times):.3g} ms, unpruned {record['engines'][UNPRUNED]['p50_ms']:.3g} ms. Where the pictures are, "
            f"with device/ copied back: edgeopt compress --int8 --latency 4ms --target {record['target']}"
        )
    emit(list(made.values()), as_json=as_json, text="\n".join(lines))
    return 0
