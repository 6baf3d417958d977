"""Where a search begins: the space searched when none is stated, and the recipe's own values as its first trial."""

from __future__ import annotations

from typing import Any

from edgeopt import models
from edgeopt.config import Recipe
from edgeopt.errors import ModelError
from edgeopt.stages.starting import constructor_arguments
from edgeopt.training_tables import augmentation, contradictions, smoothing
from edgeopt.tune_space import Choice, Parameter, Range, Space
from edgeopt.tuning.trial import applies, contradicted

#: Two classes: whether a model can be built with an argument does not depend on their number.
_CLASSES = 2


def default_space(recipe: Recipe) -> Space:
    """Learning rate (about the recipe's, a decade each way) and its schedule, regularization and augmentation.

    What the recipe's loss or model cannot take, such as MixUp with hard labels, is left out. Raises ModelError.
    """
    train = recipe.train
    space: dict[str, Parameter] = {
        "train.weight_decay": Range(1e-3, 0.3, log=True),
        "train.schedule": Choice(("cosine", "one_cycle", "step")),
        "train.layer_decay": Range(0.6, 1.0),
        "train.augment": Choice(("light", "default", "heavy")),
        "augment.mixup": Choice((0.0, 0.2)),
        "train.label_smoothing": Choice((0.0, 0.1, 0.2)),
        **_regularization(recipe),
    }
    if train.lr != "auto":
        space = {"train.lr": Range(train.lr / 10, min(10.0, train.lr * 10), log=True), **space}
    return {key: one for key, one in ((key, _possible(key, one, recipe)) for key, one in space.items()) if one}


def baseline(space: Space, recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """The recipe's own value of each key of ``space``, and the keys for which the space does not have it.

    Of those the first value, or the nearest end of the range, stands in. Keys that mean nothing beside the recipe's
    own values, such as ``train.lr_decay`` of the schedule ``cosine``, are in neither.
    """
    found: dict[str, Any] = {}
    absent: list[str] = []
    for key, parameter in space.items():
        if not applies(recipe, {}, key, parameter):
            continue
        stated, meant = _value(recipe, key), _effective(recipe, key)
        if isinstance(parameter, Choice):
            # True is 1 in Python, and no other value here.
            same = [one for one in parameter.values for own in (stated, meant) if one == own and type(one) is type(own)]
            found[key] = same[0] if same else parameter.values[0]
            absent += [] if same else [key]
            continue
        number = meant if isinstance(meant, (int, float)) and not isinstance(meant, bool) else parameter.low
        found[key] = min(max(number, parameter.low), parameter.high)
        absent += [] if found[key] == meant else [key]
    return found, absent


def _value(recipe: Recipe, key: str) -> Any:
    """As the recipe states it; None when it does not."""
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part)
    return value


def _effective(recipe: Recipe, key: str) -> Any:
    """What holds where the recipe leaves it to a preset or a default that depends on the loss."""
    table, _, name = key.partition(".")
    if table == "augment":
        return getattr(augmentation(recipe.train.augment, recipe.augment, flip=recipe.train.flip), name)
    if key == "train.label_smoothing":
        train = recipe.train.model_copy(update={"label_smoothing": 0.1})
        soft = not any(problem.startswith(f"{key}:") for problem in contradictions(train, recipe.augment))
        return smoothing(recipe.train, soft_targets=soft)
    return _value(recipe, key)


def _possible(key: str, parameter: Parameter, recipe: Recipe) -> Parameter | None:
    """``parameter`` without values that contradict the recipe; None when fewer than two, or part of a range, are."""
    if isinstance(parameter, Range):
        return None if any(_contradicts(recipe, key, end) for end in parameter.examples) else parameter
    kept = tuple(one for one in parameter.values if not _contradicts(recipe, key, one))
    return Choice(kept) if len(kept) > 1 else None


def _contradicts(recipe: Recipe, key: str, value: Any) -> bool:
    return bool(contradicted(recipe, {key: value}))


def _regularization(recipe: Recipe) -> dict[str, Parameter]:
    """Dropout and drop path where every model of the recipe has them; None is the model's own."""
    choices: dict[str, Choice] = {
        "train.dropout": Choice((None, 0.1, 0.3)),
        "train.drop_path": Choice((None, 0.05, 0.15)),
    }
    return {key: choice for key, choice in choices.items() if _value(recipe, key) is None and _takes(recipe, key)}


def _takes(recipe: Recipe, key: str) -> bool:
    train = recipe.train.model_copy(update={key.partition(".")[2]: 0.1})
    extra = constructor_arguments(recipe.model.name, train)
    if set(extra) & set(recipe.model.arguments):
        return False
    try:
        arguments = {**recipe.model.arguments, **extra}
        models.create(recipe.model.name, num_classes=_CLASSES, arguments=arguments, pretrained=False)
    except ModelError as error:
        if any(name in error.message for name in extra):
            return False
        raise
    return True
