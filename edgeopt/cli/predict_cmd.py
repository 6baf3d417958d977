"""``edgeopt predict``: classify pictures with one engine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgeopt.cli.common import Terminal, emit, output_options, path_or_name, pick_run, run_option, trust_option
from edgeopt.files import printable


@click.command("predict")
@click.argument("images", nargs=-1, required=True, type=path_or_name)
@click.option("--engine", help="TARGET/VARIANT, as `edgeopt show` lists them. [default: the int8 engine built last]")
@click.option("--variant", help="Ask a variant in PyTorch, or an ensemble, instead of an engine.")
@click.option("--top", type=click.IntRange(1), help="Labels listed for each picture. [default: 1, with --json 5]")
@trust_option
@run_option
@output_options
def command(
    images: tuple[str, ...],
    engine: str | None,
    variant: str | None,
    top: int | None,
    trust_engine: bool,
    run_path: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Classify IMAGES: files, folders or globs; - reads a list of them from standard input, one a line."""
    from edgeopt.classify import with_list
    from edgeopt.stages.predict import predict

    console = Terminal(quiet=quiet)
    run = pick_run(run_path, console)
    predictions, failures = predict(
        run,
        with_list(images, sys.stdin),
        engine=engine,
        variant=variant,
        top=top or (5 if as_json else 1),
        trust_engine=trust_engine,
        console=console,
    )
    lines = [printable(item.to_text()) for item in predictions]
    emit([item.to_json() for item in predictions], as_json=as_json, text="\n".join(lines))
    for failure in failures:
        click.echo(printable(f"edgeopt: {failure}"), err=True)
    return 1 if failures else 0
