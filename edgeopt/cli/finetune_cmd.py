"""``edgeopt finetune``: fine-tune a pretrained model on a folder of labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeopt.allotment import process_rank
from edgeopt.cli.common import (
    OrAuto,
    Terminal,
    as_settings,
    augment_options,
    draw_preview,
    emit,
    force_option,
    input_options,
    model_argument_option,
    new_run_option,
    no_pretrained_option,
    output_options,
    path_or_name,
    picture_options,
    preview_option,
    require_nothing_to_leave_out,
    set_option,
    settings,
)
from edgeopt.config import Recipe, over_recipe, stated_over_recipe, validate
from edgeopt.tables import DISTILL
from edgeopt.training_tables import SCHEDULES, UNFREEZE

#: Options that set one key of the recipe.
_KEYS = {
    "path": "data.path", "image_size": "data.image_size", "resize": "data.resize", "max_pixels": "data.max_pixels",
    "interpolation": "data.interpolation", "normalize": "data.normalize", "exclude": "data.exclude",
    "name": "model.name", "weights": "model.weights", "pretrained": "model.pretrained",
    "mixup": "augment.mixup", "cutmix": "augment.cutmix",
    **{
        name: f"train.{name}"
        for name in (
            "epochs", "time", "batch_size", "optimizer", "lr", "schedule", "loss", "sampling", "label_smoothing",
            "head_epochs", "unfreeze", "weight_decay", "l1", "dropout", "drop_path", "batchnorm", "ema_decay",
            "clip_grad", "augment", "flip", "folds", "keep", "teacher", "distill",
        )
    },
}  # fmt: skip


@click.command("finetune")
@click.argument("path", metavar="DATA", type=path_or_name)
@click.option("--model", "name", help="Model name, as in `edgeopt models`. [default: tf_efficientnet_lite0]")
@model_argument_option
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Start from this weights file instead of pretrained ones."
)
@no_pretrained_option
@input_options
@click.option("--epochs", type=int, help="Passes over the training pictures. [default: 20]")
@click.option(
    "--time", help="Bound it, all folds together, as 20m, 1h30m, 90s; the schedule fits it. [default: no bound]"
)
@click.option("--batch-size", type=OrAuto(int), help="Pictures a step; auto: by a probe. [default: 32]")
@click.option(
    "--lr",
    type=OrAuto(float),
    help="Learning rate of the head; auto: by a range test. [default: the optimizer's, AdamW's 0.001]",
)
@click.option(
    "--optimizer",
    metavar="NAME",
    help="adamw, adam, sgd (Nesterov), momentum, rmsprop, or another of timm's. [default: adamw]",
)
@click.option(
    "--schedule", type=click.Choice(SCHEDULES), help="What the learning rate does after warm-up. [default: cosine]"
)
@click.option("--head-epochs", type=float, help="Train the head alone first; may have decimals. [default: 0]")
@click.option(
    "--unfreeze",
    type=click.Choice(UNFREEZE),
    help="Layers under the head: all at once, gradually from the head down, or none. [default: all]",
)
@click.option("--loss", help="cross_entropy, weighted (by class), focal, or module:attr. [default: cross_entropy]")
@click.option(
    "--sampling",
    type=click.Choice(["shuffled", "balanced"]),
    help="balanced: every class equally often. [default: shuffled]",
)
@click.option("--label-smoothing", type=float, help="How soft labels are made. [default: 0.1 where the loss takes it]")
@click.option("--weight-decay", type=float, help="L2, but for norms and biases. [default: 0.05]")
@click.option("--l1", type=float, help="L1, but for norms and biases. [default: 0]")
@click.option("--dropout", type=float, help="Dropout before the classifier. [default: the model's own]")
@click.option("--drop-path", type=float, help="Share of residual branches dropped. [default: the model's own]")
@click.option("--batchnorm", type=click.Choice(["trained", "frozen"]), help="frozen: as it came. [default: trained]")
@click.option("--ema-decay", type=float, help="Of the weights' moving average, 0 for none. [default: 0.99]")
@click.option("--clip-grad", type=float, help="Largest norm of the gradient, 0 for any. [default: 1]")
@augment_options
@click.option("--mixup", type=float, help="MixUp's alpha, 0 for none; off near the end. [default: the preset's]")
@click.option("--cutmix", type=float, help="CutMix's alpha, 0 for none; off near the end. [default: the preset's]")
@click.option("--folds", type=int, metavar="K", help="Cross-validate: K trainings, each judged on a part of train.")
@click.option(
    "--keep",
    type=click.Choice(["best", "soup"]),
    help="Of the K models: the best on val, or their soup. [default: best]",
)
@click.option("--teacher", help="Learn also from the model of the run in this folder, or of this run's variant.")
@click.option("--distill", type=click.Choice(DISTILL), help="How to learn from the teacher. [default: hinton]")
@preview_option
@picture_options
@click.option("--seed", type=int, help="Of the split, the order and the augmentation. [default: 0]")
@set_option
@new_run_option
@force_option
@output_options
def command(
    preview: Path | None,
    group_near: bool,
    seed: int | None,
    others: tuple[str, ...],
    model_arguments: tuple[str, ...],
    run_path: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Fine-tune a pretrained model on DATA.

    DATA is a folder with one subfolder a class, a folder with train/val/test subfolders of such, a CSV or JSONL file
    with the columns path and label (and split, group, weight), or torchvision:NAME. It may be a recipe (.toml) too: its
    [data], [model], [train] and [augment] hold where no option says otherwise, and edgeopt run goes on from there.

    On several GPUs or nodes: torchrun --nproc_per_node=N -m edgeopt finetune DATA
    """
    stated = {_KEYS[name]: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    values = settings(
        {**stated, "data.seed": seed, "train.seed": seed, "data.group_near": group_near or None},
        [*as_settings(model_arguments), *others],
    )
    recipe = validate(Recipe, over_recipe(values), where="finetune options")
    from edgeopt.stages.finetune import finetune
    from edgeopt.stages.report import keep_budget

    leads = process_rank() == 0
    console = Terminal(quiet=quiet or not leads)
    if preview is not None:
        draw_preview(recipe, preview, console, as_json=as_json)
        return
    require_nothing_to_leave_out(recipe, options["path"])
    with stated_over_recipe(values):
        trained = finetune(
            recipe.data,
            recipe.model,
            recipe.train,
            augment=recipe.augment,
            run=run_path or recipe.run_path,
            force=force,
            console=console,
        )
    if leads and recipe.budget.model_fields_set:
        keep_budget(trained.run, recipe.budget)
    if leads:
        emit(trained.to_json(), as_json=as_json, text=trained.summary())
