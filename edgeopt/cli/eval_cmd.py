"""``edgeopt eval``: accuracy of one engine on the test set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgeopt.cli.common import Terminal, emit, on_option, options_of, output_options, pick_run, run_option, trust_option


@click.command("eval")
@click.option("--engine", help="TARGET/VARIANT, as `edgeopt show` lists them. [default: the int8 engine built last]")
@click.option("--variant", help="Judge a variant in PyTorch, or an ensemble, instead of an engine.")
@on_option
@trust_option
@run_option
@output_options
def command(
    engine: str | None,
    variant: str | None,
    on: str | None,
    trust_engine: bool,
    run_path: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Accuracy of one engine on the test set."""
    from edgeopt.stages.bench import evaluate

    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    if on is not None:
        from edgeopt.remote import run_on

        typed = options_of(engine=engine, variant=variant, trust_engine=trust_engine)
        result = json.loads(run_on(run, on, ["eval", "--json", *typed], console=console))
    else:
        result = evaluate(run, engine, variant=variant, trust_engine=trust_engine, console=console)
    low, high = (f"{bound:.1%}" for bound in result["top1_ci"])
    name = result.get("ensemble") or result["engine"]
    text = f"{name}: top-1 {result['top1']:.2%} of {result['n']} test pictures (95 % interval {low} to {high})"
    if "best_member" in result:
        text += f"\n{_against_best_member(result)}"
    emit(result, as_json=as_json, text=text)


def _against_best_member(result: Mapping[str, Any]) -> str:
    """The paired difference of an ensemble to the member that is best on val, the sign as a gain."""
    best, drop = result["best_member"], result["drop"]
    low, high = (0.0 - bound for bound in reversed(result["drop_ci_points"]))
    interval = f"95 % interval {low:+.2f} to {high:+.2f}, McNemar p = {drop['mcnemar_p']:.2g}"
    return (
        f"its best member on val, {best}: {result['members'][best]:.2%}; "
        f"the ensemble gains {0.0 - result['drop_points']:+.2f} points ({interval})"
    )
