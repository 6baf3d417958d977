"""``edgeopt build``: build engines for a target and audit what they run in int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeopt.cli.common import Terminal, emit, force_option, on_option, options_of, output_options, pick_run, run_option
from edgeopt.config import load_target
from edgeopt.errors import raise_first

targets_option = click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    help="A name from `edgeopt targets` or a TOML file; may be repeated.",
)


@click.command("build")
@targets_option
@click.option(
    "--variant", "variants", multiple=True, help="Build this int8 variant; may be repeated. [default: all that fit]"
)
@click.option(
    "--strict", is_flag=True, help="Fewer MACs in int8 than the target asks for (by default all) are an error."
)
@click.option(
    "--float-layer",
    "float_layers",
    multiple=True,
    metavar="NAME",
    help="Leave this layer (as in fusion.json) or module in float, without training; may be repeated.",
)
@click.option(
    "--embed-preprocessing",
    is_flag=True,
    help="Put the normalization into the graph: the engines take uint8 pictures (N, height, width, 3).",
)
@click.option(
    "--onnx",
    type=click.Path(path_type=Path),
    help="Build a classifier from elsewhere: float32, or with QDQ, of a dynamic batch; makes a run for it.",
)
@click.option("--labels", type=click.Path(path_type=Path), help="Its classes, one a line, in the order of its logits.")
@click.option("--preprocess", type=click.Path(path_type=Path), help="Its preprocess.json. [default: ImageNet's usual]")
@click.option(
    "--data", "pictures", multiple=True, help="Pictures to compare engines on with the file; may be repeated."
)
@on_option
@run_option
@force_option
@output_options
def command(
    targets: tuple[str, ...],
    variants: tuple[str, ...],
    strict: bool,
    float_layers: tuple[str, ...],
    embed_preprocessing: bool,
    onnx: Path | None,
    labels: Path | None,
    preprocess: Path | None,
    pictures: tuple[str, ...],
    on: str | None,
    run_path: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Build engines for a target, with the float ones they are compared with."""
    from edgeopt.stages.build import Built, build_each
    from edgeopt.stages.foreign import import_onnx

    console = Terminal(quiet=quiet)
    how: dict[str, Any] = {"strict": strict, "embed_preprocessing": embed_preprocessing, "force": force}
    if (onnx is None) != (labels is None) or (onnx is None and (preprocess or pictures)):
        raise click.UsageError("--onnx and --labels belong together, and --preprocess and --data to them")
    for target in targets:
        load_target(target)  # a misspelt name is said now, before anything is made or built
    if onnx is not None and labels is not None:
        run = import_onnx(onnx, labels, preprocess=preprocess, pictures=pictures, run=run_path, console=console)
        console.say(f"run: {run.path}")
    else:
        run = pick_run(run_path, console)
    if on is not None:
        from edgeopt.remote import run_on

        if float_layers:  # on the device there may be no torch
            from edgeopt.stages.export import export
            from edgeopt.stages.mixing import mix

            variants = tuple(one.name for one in mix(run, float_layers, variants=variants, console=console))
            export(run, variants=variants, console=console)
        typed = options_of(target=targets, variant=variants, **how)
        records = json.loads(run_on(run, on, ["build", "--json", *typed], console=console))
        lines = [Built(one["target"], one["variant"], one, skipped=False).summary() for one in records]
        emit(records, as_json=as_json, text="\n".join(lines))
        return
    how |= {"float_layers": float_layers}
    built, failed = build_each(run, targets, variants=variants, **how, console=console)
    if built or not failed:
        emit([item.record for item in built], as_json=as_json, text="\n".join(item.summary() for item in built))
    raise_first(failed)
