"""``edgeopt finetune``: fine-tune a pretrained model on a folder of labelled pictures."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.common import Terminal, emit, force_option, given, output_options, picture_options
from edgeopt.config import Recipe, validate


@click.command("finetune")
@click.argument("data")
@click.option("--model", "name", help="Model name, as in `edgeopt models`. [default: tf_efficientnet_lite0]")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Start from this weights file instead of pretrained ones."
)
@click.option("--no-pretrained", is_flag=True, help="Start from random weights.")
@click.option("--image-size", type=int, help="Input height and width in pixels. [default: the model's own]")
@click.option(
    "--resize", type=click.Choice(["crop", "squash", "letterbox"]), help="How a picture is made square. [default: crop]"
)
@click.option("--epochs", type=int, help="Passes over the training pictures. [default: 20]")
@click.option("--batch-size", type=int, help="Pictures a step. [default: 32]")
@click.option("--lr", type=float, help="Learning rate of the head. [default: 0.001]")
@click.option(
    "--augment", type=click.Choice(["none", "light", "default"]), help="Augmentation preset. [default: default]"
)
@click.option(
    "--flip/--no-flip",
    default=None,
    help="Mirror pictures while training; off where left and right differ, as for digits.",
)
@picture_options
@click.option("--seed", type=int, help="Of the split, the order and the augmentation. [default: 0]")
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="The run folder. [default: runs/NAME OF DATA]")
@force_option
@output_options
def command(
    data: str,
    name: str | None,
    weights: Path | None,
    no_pretrained: bool,
    image_size: int | None,
    resize: str | None,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    augment: str | None,
    flip: bool | None,
    max_pixels: int | None,
    exclude: str | None,
    group_near: bool,
    seed: int | None,
    run_path: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fine-tune a pretrained model on DATA.

    DATA is a folder with one subfolder a class, a folder with train/val/test subfolders of such, a CSV or JSONL file
    with the columns path and label (and split, group, weight), or torchvision:NAME.
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
            "model": given(
                name=name, weights=str(weights) if weights else None, pretrained=False if no_pretrained else None
            ),
            "train": given(epochs=epochs, batch_size=batch_size, lr=lr, augment=augment, flip=flip, seed=seed),
        },
        where="finetune options",
    )
    from edgeopt.stages.finetune import finetune

    trained = finetune(
        recipe.data, recipe.model, recipe.train, run=run_path, force=force, console=Terminal(quiet=quiet)
    )
    emit(trained.to_json(), as_json=as_json, text=trained.summary())
