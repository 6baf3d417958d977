"""What is wrong in a recipe's tables together: contradictions between them, names that nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from edgeopt.compress_table import CompressConfig
from edgeopt.errors import EdgeoptError
from edgeopt.recipe_tables import EnsembleConfig, ModelConfig, Recipe
from edgeopt.training_tables import AugmentConfig, TrainConfig
from edgeopt.training_tables import contradictions as training_contradictions
from edgeopt.tune_space import read_space
from edgeopt.tune_table import TuneConfig


def recipe_contradictions(values: Mapping[str, Any]) -> list[str]:
    """What contradicts itself, as far as the tables are readable, and what is wrong in the search space."""
    return [*_between_tables(values), *_against_targets(values), *_against_check(values), *_of_the_space(values)]


def _between_tables(values: Mapping[str, Any]) -> list[str]:
    try:
        train = _readable_training(values.get("train", {}))
        model = ModelConfig.model_validate(values.get("model", {}))
        augment = AugmentConfig.model_validate(values.get("augment", {}))
        wanted = values.get("ensemble")
        return [
            *training_contradictions(train, augment, random_weights=model.random_weights),
            *(_against_ensemble(train, EnsembleConfig.model_validate(wanted)) if wanted is not None else ()),
            *_against_features(wanted, CompressConfig.model_validate(values.get("compress", {}))),
        ]
    except ValidationError:
        return []


def _readable_training(table: Any) -> TrainConfig:
    """``[train]``, as if no loss were stated when that is all that is wrong: it contradicts the least of them."""
    try:
        return TrainConfig.model_validate(table)
    except ValidationError as error:
        if not isinstance(table, Mapping) or any(item["loc"] != ("loss",) for item in error.errors()):
            raise
    return TrainConfig.model_validate({key: value for key, value in table.items() if key != "loss"})


def unknown_names(values: Mapping[str, Any]) -> list[str]:
    """Names that timm and torchvision do not know; none where these are not installed."""
    if find_spec("timm") is None or find_spec("torchvision") is None:
        return []
    from edgeopt.models.builders import require_known, split_name
    from edgeopt.train.optimizer import require_known_optimizer

    found = []
    for table, key, check in (
        ("model", "name", lambda name: require_known(*split_name(name))),
        ("train", "optimizer", require_known_optimizer),
    ):
        name = _stated(values, table, key)
        try:
            check(name) if isinstance(name, str) else None
        except EdgeoptError as error:
            found.append(f"{table}.{key}: {error.message}")
    return found


def _stated(values: Mapping[str, Any], table: str, key: str) -> Any:
    """A key of a table that may be plain or read already; None where it is not there."""
    found = values.get(table)
    return found.get(key) if isinstance(found, Mapping) else getattr(found, key, None)


def _against_targets(values: Mapping[str, Any]) -> list[str]:
    """A latency is measured on one target, and so are its candidates."""
    targets = values.get("targets", Recipe.model_fields["targets"].default)
    if not isinstance(targets, (list, tuple)) or len(targets) == 1:
        return []
    return [
        f"compress.{name}: it is measured on one target, and targets names {len(targets)}; name one"
        for name in ("latency", "latency_candidates")
        if _stated(values, "compress", name)
    ]


def _against_ensemble(train: TrainConfig, wanted: EnsembleConfig) -> list[str]:
    if wanted.members:
        return []
    if train.folds is None:
        return ["ensemble.members: one model is trained, and an ensemble needs two; set train.folds, or name variants"]
    if wanted.vote == "stacking":
        return [
            "ensemble.vote: stacking learns from pictures no member was trained on, and every one was in the training "
            "of all folds but one; name cross-validated variants in ensemble.members"
        ]
    if wanted.vote == "soup" and train.keep == "soup":
        return ["ensemble.vote: train.keep makes the soup of the folds already; leave one of them out"]
    return []


def _against_check(values: Mapping[str, Any]) -> list[str]:
    if _stated(values, "check", "leave_out") is True and _stated(values, "data", "exclude"):
        return ["check.leave_out: data.exclude names the pictures to leave out already; leave one of them out"]
    return []


def _against_features(ensemble: Any, compress: CompressConfig) -> list[str]:
    if ensemble is None or compress.teacher is not None or compress.distill != "features":
        return []
    if EnsembleConfig.model_validate(ensemble).vote == "soup":
        return []
    return [
        "compress.distill: the ensemble teaches, and has no features of its own; name one of its members in "
        "compress.teacher, or take another way"
    ]


def _of_the_space(values: Mapping[str, Any]) -> list[str]:
    """Those of the search space of ``[tune]``, if it is a table at all."""
    table = values.get("tune")
    space = (
        table.get("space", {}) if isinstance(table, Mapping) else table.space if isinstance(table, TuneConfig) else {}
    )
    return [f"tune.space.{one}" for one in read_space(space, Recipe)[1]] if isinstance(space, Mapping) else []
