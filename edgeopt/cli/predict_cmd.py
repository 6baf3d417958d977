"""``edgeopt predict``: classify pictures with one engine."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, emit, output_options, pick_run, run_option, trust_option
from edgeopt.files import printable


@click.command("predict")
@click.argument("images", nargs=-1, required=True)
@click.option("--engine", help="TARGET/VARIANT, as `edgeopt show` lists them. [default: the int8 engine built last]")
@click.option("--variant", help="Ask a variant in PyTorch, or an ensemble, instead of an engine.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Labels listed for each picture.")
@trust_option
@run_option
@output_options
def command(
    images: tuple[str, ...],
    engine: str | None,
    variant: str | None,
    top: int,
    trust_engine: bool,
    run_path: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Classify IMAGES: files, folders or globs."""
    from edgeopt.stages.predict import predict

    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    predictions, failures = predict(
        run, images, engine=engine, variant=variant, top=top, trust_engine=trust_engine, console=console
    )
    lines = [f"{printable(item.path)}: {item.label} ({item.probability:.1%})" for item in predictions]
    emit([item.to_json() for item in predictions], as_json=as_json, text="\n".join(lines))
    for failure in failures:
        click.echo(printable(f"edgeopt: {failure}"), err=True)
    return 1 if failures else 0
