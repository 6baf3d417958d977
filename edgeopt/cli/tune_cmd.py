"""``edgeopt tune``: search for the hyperparameters that train best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli.common import (
    Terminal,
    as_settings,
    emit,
    model_argument_option,
    new_run_option,
    no_pretrained_option,
    output_options,
    path_or_name,
    picture_options,
    require_nothing_to_leave_out,
    settings,
    table,
)
from edgeopt.config import Recipe, merged, over_recipe, read_toml, validate

if TYPE_CHECKING:
    from edgeopt.tuning.result import State, TuneResult

_KEYS = {
    "path": "data.path", "max_pixels": "data.max_pixels", "exclude": "data.exclude", "name": "model.name",
    "pretrained": "model.pretrained", "epochs": "train.epochs", "trials": "tune.trials", "time": "tune.time",
    "workers": "tune.workers", "pruner": "tune.pruner",
}  # fmt: skip
_SHOWN = 10
_ENDS: tuple[State, ...] = ("complete", "pruned", "failed")


@click.command("tune")
@click.argument("path", metavar="DATA", type=path_or_name)
@click.option(
    "--space", type=click.Path(path_type=Path), help="A TOML file of what varies. [default: the recipe's, or ours]"
)
@click.option("--models", help="Model names to choose from, with commas between.")
@click.option("--image-sizes", help="Input sizes to choose from, as in 96,128,96x160.")
@click.option("--trials", type=int, help="Trials in all. [default: 20, or as many as --time allows]")
@click.option("--time", help="How long this may take, as in 90s, 30m or 2h.")
@click.option("--epochs", type=int, help="Epochs of a trial that is not pruned. [default: 20]")
@click.option("--workers", type=int, help="Processes that share the work. [default: 1]")
@click.option(
    "--pruner",
    type=click.Choice(["median", "halving", "hyperband", "none"]),
    help="Who ends trials that are not worth going on. [default: median]",
)
@click.option("--model", "name", help="Model name. [default: tf_efficientnet_lite0, or the first of --models]")
@model_argument_option
@no_pretrained_option
@picture_options
@click.option("--seed", type=int, help="Of the split, of training and of the search. [default: 0]")
@click.option(
    "--set",
    "others",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any key of a recipe that does not vary, as for finetune.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the recipe. [default: in the run folder]")
@new_run_option
@output_options
def command(
    space: Path | None,
    models: str | None,
    image_sizes: str | None,
    group_near: bool,
    seed: int | None,
    others: tuple[str, ...],
    model_arguments: tuple[str, ...],
    out: Path | None,
    run_path: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Fine-tune on DATA again and again, each time with other hyperparameters, and write the best ones as a recipe.

    DATA is as for finetune, or a recipe (.toml), whose [tune] says what varies. Trials are judged on val; test is never
    looked at. The same command goes on with the search; typed in several shells, all share it.
    """
    recipe = search_recipe(
        {_KEYS[name]: value for name, value in options.items()},
        [*as_settings(model_arguments), *others],
        seed=seed,
        group_near=group_near,
        space=space,
        models=models,
        image_sizes=image_sizes,
    )
    require_nothing_to_leave_out(recipe, options["path"])
    from edgeopt.stages.tune import tune

    result = tune(recipe, run=run_path, out=out, console=Terminal(quiet=quiet))
    emit(result.to_json(), as_json=as_json, text=_summary(result))


def search_recipe(
    stated: Mapping[str, Any],
    others: Sequence[str] = (),
    *,
    seed: int | None = None,
    group_near: bool = False,
    space: Path | None = None,
    models: str | None = None,
    image_sizes: str | None = None,
) -> Recipe:
    """The recipe to vary and its space: what is ``stated`` (dotted keys) over a recipe's file, where DATA is one.

    ``space`` replaces the recipe's; ``models`` and ``image_sizes`` are added. Raises ConfigError.
    """
    seeds = {f"{table}.seed": seed for table in ("data", "train", "tune")}
    values = settings({**stated, **seeds, "data.group_near": group_near or None}, others)
    varied = {**_words("model.name", models), **_words("data.image_size", image_sizes)}
    for key, choices in varied.items():
        head, _, name = key.partition(".")
        values.setdefault(head, {}).setdefault(name, choices[0])
    values = over_recipe(values)
    known = read_toml(space) if space else values.get("tune", {}).get("space", {})
    return validate(Recipe, merged(values, {"tune": {"space": {**known, **varied}}}), where="tune options")


def _summary(result: TuneResult) -> str:
    """The best trials as a table, and what to know of them."""
    from edgeopt.tuning.crew import shown

    complete = [one for one in result.trials if one.state == "complete"]
    best = sorted(complete, key=lambda one: (-(one.score or 0.0), one.number))[:_SHOWN]
    keys = list(dict.fromkeys(key for one in best for key in one.parameters))
    rows = [
        [f"{one.number}{' (defaults)' if one.defaults else ''}", f"{one.score or 0.0:.2%}", str(one.epochs)]
        + [shown(one.parameters[key]) if key in one.parameters else "–" for key in keys]
        for one in best
    ]
    lines = [table(["trial", "val", "epochs", *(key.partition(".")[2] for key in keys)], rows)]
    lines.append(", ".join(f"{result.count(state)} {state}" for state in _ENDS) + " trials")
    if result.gain is not None:
        low, high = result.gain.ci_points
        lines.append(
            f"ahead of the defaults by {result.gain.points:.2f} points of val top-1 "
            f"(paired 95 % interval {low:.2f} to {high:.2f}, not corrected for picking)"
        )
    lines += [f"note: {note}" for note in result.notes]
    lines += [f"page: {result.html}", f"recipe: {result.recipe}; train it with: edgeopt run {result.recipe}"]
    return "\n".join(lines)


def _words(key: str, text: str | None) -> dict[str, list[Any]]:
    """A list with commas between as the choices of ``key``; numbers are numbers."""
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    return {key: [int(word) if word.isdigit() else word for word in words]} if words else {}
