"""What the verbs share: their options, the run they are about, the one JSON object on stdout."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeopt.cli.terminal import Terminal as Terminal
from edgeopt.cli.typed import OrAuto as OrAuto
from edgeopt.cli.typed import as_settings as as_settings
from edgeopt.cli.typed import given as given
from edgeopt.cli.typed import one_table as one_table
from edgeopt.cli.typed import options_of as options_of
from edgeopt.cli.typed import settings as settings
from edgeopt.config import Recipe
from edgeopt.errors import ConfigError
from edgeopt.files import printable
from edgeopt.run import Run
from edgeopt.training_tables import PRESETS

Function = TypeVar("Function", bound=Callable[..., Any])


def output_options(function: Function) -> Function:
    """``--json`` and ``--quiet``, passed on as ``as_json`` and ``quiet``."""
    function = click.option("--quiet", "-q", is_flag=True, help="No messages, no progress.")(function)
    return click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout, nothing else there.")(
        function
    )


#: The type of an argument that is a path, a pattern of them, or a name such as torchvision:CIFAR10, kept as it is.
path_or_name = click.Path(readable=False)

run_option = click.option(
    "--run",
    "run_path",
    type=click.Path(path_type=Path),
    help="The run folder. [default: the newest under ./runs]",
)


allow_undecided_option = click.option(
    "--allow-undecided",
    is_flag=True,
    help="Exit with 0, not 5, when too few pictures or too little time leave a line undecided.",
)


def budget_options(function: Function) -> Function:
    """``--budget`` and ``--allow-undecided``."""
    function = allow_undecided_option(function)
    return click.option(
        "--budget",
        "budget",
        multiple=True,
        metavar="FILE|KEY=VALUE",
        help="A budget line, such as max_drop_points=1.0, or a TOML file of them; may be repeated. "
        "[default: the recipe's]",
    )(function)


def allowance_options(function: Function) -> Function:
    """``--slower``, ``--drop-points`` and ``--larger``: what may be lost against an earlier report."""
    for name, text in (
        ("larger", "The fraction by which an engine may be larger than in the earlier report. [default: 0.05]"),
        ("drop-points", "The points of top-1 it may have lost since. [default: 1.0]"),
        ("slower", "The fraction by which it may be slower. [default: 0.05]"),
    ):
        function = click.option(f"--{name}", type=float, help=text)(function)
    return function


baseline_option = click.option(
    "--baseline", metavar="REPORT", help="An earlier report.json, or a run folder, not to fall behind; exit 3 if so."
)

force_option = click.option("--force", is_flag=True, help="Make it again although nothing changed.")
trust_option = click.option(
    "--trust-engine",
    is_flag=True,
    help="Open engines built on another machine too: TensorRT's are native code, so only of someone you trust.",
)
on_option = click.option(
    "--on",
    metavar="URL",
    help="Do it on another machine, ssh://[user@]host[:port][/folder], with the edgeopt that is there.",
)
max_pixels_option = click.option(
    "--max-pixels",
    type=int,
    help="Set larger pictures aside, but for JPEGs that can be read at a smaller scale. [default: 100000000]",
)


def picture_options(function: Function) -> Function:
    """Which pictures are used: ``--max-pixels``, ``--exclude``, ``--group-near``."""
    function = click.option(
        "--group-near",
        is_flag=True,
        help="Keep near duplicates in one split: a picture, its resized or recoded copies.",
    )(function)
    function = click.option("--exclude", help="Leave out the pictures this file lists, as `edgeopt check` writes it.")(
        function
    )
    return max_pixels_option(function)


preview_option = click.option(
    "--augment-preview",
    "preview",
    type=click.Path(path_type=Path),
    help="Draw pictures as training would see them to this PNG file; do nothing else.",
)
set_option = click.option(
    "--set", "others", multiple=True, metavar="KEY=VALUE", help="Any key of a recipe, as in augment.rotation=15."
)


def augment_options(function: Function) -> Function:
    """What changes pictures while training: ``--augment``, ``--flip``."""
    function = click.option(
        "--flip/--no-flip",
        default=None,
        help="Mirror pictures while training; off where left and right differ, as for digits.",
    )(function)
    return click.option("--augment", type=click.Choice(PRESETS), help="Augmentation preset. [default: default]")(
        function
    )


new_run_option = click.option(
    "--run", "run_path", type=click.Path(path_type=Path), help="The run folder. [default: runs/NAME OF DATA]"
)

no_pretrained_option = click.option(
    "--no-pretrained", "pretrained", is_flag=True, flag_value=False, default=None, help="Start from random weights."
)

model_argument_option = click.option(
    "--model-arg",
    "model_arguments",
    multiple=True,
    metavar="KEY=VALUE",
    help="An argument of the model's constructor, as in depths=[1,1,3,1]; may be repeated.",
)


def input_options(function: Function) -> Function:
    """How pictures become the model's input: ``--image-size``, ``--resize``, ``--interpolation``, ``--normalize``."""
    for option in (
        click.option(
            "--normalize",
            type=click.Choice(["model", "data", "unit"]),
            help="By whose mean and deviation: the model's, the train pictures', or none. [default: model]",
        ),
        click.option(
            "--interpolation",
            type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"]),
            help="How pictures are scaled. [default: the model's own]",
        ),
        click.option(
            "--resize",
            type=click.Choice(["crop", "squash", "letterbox"]),
            help="How a picture is brought to the input's shape. [default: crop]",
        ),
        click.option(
            "--image-size",
            metavar="N|HxW",
            help="Pixels of both sides, or HEIGHTxWIDTH as in 160x224. [default: the model's own]",
        ),
    ):
        function = option(function)
    return function


def draw_preview(recipe: Recipe, file: Path, console: Terminal, *, as_json: bool) -> None:
    """``--augment-preview``: draw ``file`` as fine-tuning by this recipe would see pictures, and say so."""
    from edgeopt.stages.finetune import augment_preview

    made = augment_preview(recipe.data, file, recipe.model, recipe.train, augment=recipe.augment, console=console)
    emit({"preview": str(made)}, as_json=as_json, text=f"wrote {made}")


def require_nothing_to_leave_out(recipe: Recipe, path: str) -> None:
    """Raises ConfigError for a recipe whose pictures ``edgeopt run`` would check and leave out in part."""
    if recipe.check is not None and recipe.check.leave_out:
        listed = Path(path).with_name("leave-out.txt")  # [data] exclude is relative to the recipe
        raise ConfigError(
            "check.leave_out of the recipe is for edgeopt run: nothing looks here for what to leave out",
            fix=f"edgeopt check {shlex.quote(path)} --exclude {shlex.quote(str(listed))}; then in the recipe, in place "
            'of leave_out, in [data]: exclude = "leave-out.txt"',
        )


data_option = click.option(
    "--data", type=str, help="Where the pictures are now, when they moved since the run was made."
)


def pick_run(path: Path | None, console: Terminal) -> Run:
    """The run named, else the newest under ./runs, said aloud."""
    if path is not None:
        return Run.open(path)
    run = Run.latest()
    console.say(f"run: {run.path}")
    return run


def emit(value: Any, *, as_json: bool, text: str) -> None:
    """``value`` as JSON or ``text``, on stdout."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False) if as_json else printable(text, keep="\n\t"))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned plain text columns."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [columns, *rows]
    ]
    return "\n".join(lines)
