"""``edgeopt adopt``: start from a model trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeopt.cli.common import (
    Terminal,
    as_settings,
    emit,
    force_option,
    given,
    input_options,
    model_argument_option,
    new_run_option,
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
@input_options
@picture_options
@click.option("--seed", type=int, help="Of the split. [default: 0]")
@new_run_option
@force_option
@output_options
def command(
    name: str,
    weights: Path,
    data: str,
    group_near: bool,
    seed: int | None,
    model_arguments: tuple[str, ...],
    run_path: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **pictures: Any,
) -> None:
    """Start from a model you trained elsewhere, such as a tutorial's model.pth, and compress that.

    Classes are matched to the class folders in alphabetical order, as torchvision's ImageFolder numbers them. Say how
    pictures were brought to its input where that was not as the model's name implies.
    """
    recipe = validate(
        Recipe,
        {
            "data": given(path=data, seed=seed, group_near=group_near or None, **pictures),
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
