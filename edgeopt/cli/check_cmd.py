"""``edgeopt check``: find what is wrong with a set of pictures before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeopt.cli.common import (
    Terminal,
    augment_options,
    draw_preview,
    emit,
    given,
    input_options,
    max_pixels_option,
    output_options,
    path_or_name,
    preview_option,
    set_option,
    settings,
    table,
)
from edgeopt.config import CheckConfig, Recipe, over_recipe, validate
from edgeopt.errors import ConfigError

#: Options that change nothing but the preview, and the keys of the recipe they set.
_OF_PREVIEW = {
    **{name: f"data.{name}" for name in ("image_size", "resize", "interpolation", "normalize")},
    **{name: f"train.{name}" for name in ("augment", "flip")},
}


@click.command("check")
@click.argument("data", type=path_or_name)
@click.option("--exclude", type=click.Path(path_type=Path), help="Write the pictures one would leave out to this file.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the page. [default: runs/checks/NAME OF DATA]")
@click.option("--model", help="Pretrained model that labels are checked with. [default: tf_efficientnet_lite0]")
@click.option(
    "--labels/--no-labels",
    default=None,
    help="Whether to look for mislabelled pictures, which takes longest. [default: labels]",
)
@max_pixels_option
@preview_option
@augment_options
@input_options
@set_option
@output_options
def command(
    data: str,
    exclude: Path | None,
    out: Path | None,
    model: str | None,
    labels: bool | None,
    max_pixels: int | None,
    preview: Path | None,
    others: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Find damaged, doubled, leaked, mislabelled, dark, bright, blurry and odd pictures in DATA, as for finetune.

    DATA may be a recipe (.toml): its [data] and [check] hold where no option says otherwise.

    Writes check.html, a page of thumbnails, and issues.json. Nothing is ever deleted or moved: look at the page, edit
    the list that --exclude writes, and give it to finetune --exclude.

    With --augment-preview it draws pictures as finetune would see them instead, given the same options from --augment
    to --set.
    """
    console = Terminal(quiet=quiet)
    if preview is not None:
        stated = {"data.path": data, "data.max_pixels": max_pixels, "model.name": model}
        values = settings({**stated, **{_OF_PREVIEW[name]: value for name, value in options.items()}}, others)
        recipe = validate(Recipe, over_recipe(values), where="check options")
        draw_preview(recipe, preview, console, as_json=as_json)
        return
    if given(**options) or others:
        raise ConfigError(
            "how training would see pictures is not part of the checks", fix="to draw it: --augment-preview grid.png"
        )
    typed = {"data.path": data, "data.max_pixels": max_pixels, "check.model": model, "check.labels": labels}
    recipe = validate(Recipe, over_recipe(settings(typed)), where="check options")
    config = recipe.check or CheckConfig()
    from edgeopt.data.checks.issues import KINDS
    from edgeopt.stages.check import check

    result = check(recipe.data, model=config.model, labels=config.labels, out=out, exclude=exclude, console=console)
    worst = {kind: next(issue for issue in result.issues if issue.kind == kind) for kind in result.counts}
    rows = [(KINDS[kind][0], str(n), f"{worst[kind].path}: {worst[kind].reason}") for kind, n in result.counts.items()]
    lines = [f"{result.pictures} pictures of {len(result.classes)} classes"]
    lines += [table(("issue", "pictures", "the worst"), rows)] if rows else ["nothing suspicious was found"]
    lines += [f"note: {note}" for note in result.notes]
    lines += result.not_checked()
    lines.append(f"page: {result.html}")
    if result.exclude is not None:
        lines.append(f"{len(result.left_out())} pictures to leave out: {result.exclude}")
    emit(result.to_json(), as_json=as_json, text="\n".join(lines))
