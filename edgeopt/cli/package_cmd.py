"""``edgeopt package``: what one copies to a device and uses."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.build_cmd import targets_option
from edgeopt.cli.common import Terminal, emit, output_options, pick_run, run_option


@click.command("package")
@targets_option
@click.option("--variant", help="The engine of this variant. [default: the int8 engine built last for the target]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder; its zip lies beside it. [default: packages/TARGET-VARIANT of the run]",
)
@run_option
@output_options
def command(
    targets: tuple[str, ...], variant: str | None, out: Path | None, run_path: Path | None, as_json: bool, quiet: bool
) -> None:
    """Write a folder and a zip to copy to a device: engine, predict.py without edgeopt, checksums, figures."""
    from edgeopt.stages.package import package

    if out is not None and len(targets) > 1:
        raise click.UsageError("--out is one folder: name one --target")
    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    made = [package(run, target, variant=variant, out=out, console=console) for target in targets]
    emit([one.to_json() for one in made], as_json=as_json, text="\n".join(one.summary() for one in made))
