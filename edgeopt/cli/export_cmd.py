"""``edgeopt export``: write the ONNX files that devices build from."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, data_option, emit, force_option, output_options, pick_run, run_option


@click.command("export")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Export this variant; may be repeated. [default: the original and the int8 ones]",
)
@run_option
@data_option
@force_option
@output_options
def command(
    variants: tuple[str, ...], run_path: Path | None, data: str | None, force: bool, as_json: bool, quiet: bool
) -> None:
    """Write ONNX files and prepared picture sets, so that a machine without torch can build, bench and predict."""
    from edgeopt.stages.export import export

    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    written = export(run, variants=variants, data=data, force=force, console=console)
    lines = [f"{name}: {run.path / record['outputs']['onnx']['path']}" for name, record in written.items()]
    emit(written, as_json=as_json, text="\n".join(lines))
