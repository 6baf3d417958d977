"""``edgeopt adopt``: start from a model trained elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import (
    Terminal,
    as_settings,
    emit,
    force_option,
    given,
    model_argument_option,
    output_options,
    picture_options,
    settings,
)
from edgeopt.config import Recipe, validate


@click.command("adopt")
@click.option("--model", "name", required=True, help="The model's name, such as torchvision:resnet18 or a timm name.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    required=True,
    help="Its trained weights: .safetensors, or a .pth state dict.",
)
@model_argument_option
@click.option("--data", required=True, help="The pictures it was trained on, as for finetune.")
@click.option("--image-size", type=int, help="Input height and width it was trained with. [default: the model's own]")
@click.option(
    "--resize",
    type=click.Choice(["crop", "squash", "letterbox"]),
    help="How pictures were made square. [default: crop]",
)
@picture_options
@click.option("--seed", type=int, help="Of the split. [default: 0]")
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="The run folder. [default: runs/NAME OF DATA]")
@force_option
@output_options
def command(
    name: str,
    weights: Path,
    data: str,
    image_size: int | None,
    resize: str | None,
    max_pixels: int | None,
    exclude: str | None,
    group_near: bool,
    seed: int | None,
    model_arguments: tuple[str, ...],
    run_path: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Start from a model you trained elsewhere, such as a tutorial's model.pth, and compress that.

    Classes are matched to the class folders in alphabetical order, as torchvision's ImageFolder numbers them.
    """
    recipe = validate(
        Recipe,
        {
            "data": given(
                path=data,
                image_size=image_size,
                resize=resize,
                max_pixels=max_pixels,
                seed=seed,
                exclude=exclude,
                group_near=group_near or None,
            ),
            "model": {
                "name": name,
                "weights": str(weights),
                **settings({}, as_settings(model_arguments)).get("model", {}),
            },
        },
        where="adopt options",
    )
    from edgeopt.stages.finetune import adopt

    adopted = adopt(recipe.data, recipe.model, run=run_path, force=force, console=Terminal(quiet=quiet))
    emit(adopted.to_json(), as_json=as_json, text=adopted.summary())
