"""``edgeopt rm``: remove a variant and its engines."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, emit, output_options, pick_run, run_option


@click.command("rm")
@click.argument("variant")
@run_option
@output_options
def command(variant: str, run_path: Path | None, as_json: bool, quiet: bool) -> None:
    """Remove VARIANT, which may be an ensemble, with its export, engines and measurements."""
    run = pick_run(run_path, Terminal(quiet=quiet))
    with run.lock():
        removed = run.remove(variant)
    emit({"removed": removed}, as_json=as_json, text="\n".join(f"removed {name}" for name in removed))
