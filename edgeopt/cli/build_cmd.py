"""``edgeopt build``: build engines for a target and audit what they run in int8."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, emit, force_option, output_options, pick_run, run_option


@click.command("build")
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    help="A name from `edgeopt targets` or a TOML file; may be repeated.",
)
@click.option(
    "--variant", "variants", multiple=True, help="Build this int8 variant; may be repeated. [default: all that fit]"
)
@click.option("--strict", is_flag=True, help="A compute layer left in float is an error.")
@run_option
@force_option
@output_options
def command(
    targets: tuple[str, ...],
    variants: tuple[str, ...],
    strict: bool,
    run_path: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Build engines for a target, with the float ones they are compared with."""
    from edgeopt.stages.build import build

    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    built = [
        item
        for target in targets
        for item in build(run, target, variants=variants, strict=strict, force=force, console=console)
    ]
    emit([item.record for item in built], as_json=as_json, text="\n".join(item.summary() for item in built))
