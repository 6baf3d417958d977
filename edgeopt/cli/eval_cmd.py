"""``edgeopt eval``: accuracy of one engine on the test set."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, emit, output_options, pick_run, run_option, trust_option


@click.command("eval")
@click.option("--engine", help="TARGET/VARIANT, as `edgeopt show` lists them. [default: the int8 engine built last]")
@trust_option
@run_option
@output_options
def command(engine: str | None, trust_engine: bool, run_path: Path | None, as_json: bool, quiet: bool) -> None:
    """Accuracy of one engine on the test set."""
    from edgeopt.stages.bench import evaluate

    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    result = evaluate(run, engine, trust_engine=trust_engine, console=console)
    low, high = (f"{bound:.1%}" for bound in result["top1_ci"])
    text = (
        f"{result['engine']}: top-1 {result['top1']:.2%} of {result['n']} test pictures (95 % interval {low} to {high})"
    )
    emit(result, as_json=as_json, text=text)
