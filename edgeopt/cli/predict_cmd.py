"""``edgeopt predict``: classify pictures with one engine."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, emit, output_options, pick_run, run_option


@click.command("predict")
@click.argument("images", nargs=-1, required=True)
@click.option("--engine", help="TARGET/VARIANT, as `edgeopt show` lists them. [default: the int8 engine built last]")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Labels listed for each picture.")
@run_option
@output_options
def command(
    images: tuple[str, ...], engine: str | None, top: int, run_path: Path | None, as_json: bool, quiet: bool
) -> int:
    """Classify IMAGES: files, folders or globs."""
    from edgeopt.stages.predict import predict

    console = Terminal(quiet=quiet)
    predictions, failures = predict(pick_run(run_path, console), images, engine=engine, top=top, console=console)
    lines = [f"{item.path}: {item.label} ({item.probability:.1%})" for item in predictions]
    emit([item.to_json() for item in predictions], as_json=as_json, text="\n".join(lines))
    for failure in failures:
        click.echo(f"edgeopt: {failure}", err=True)
    return 1 if failures else 0
