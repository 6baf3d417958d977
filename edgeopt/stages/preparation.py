"""What is trained, before its first step: the model, its preprocessing and the plan, from a recipe's tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeopt import models
from edgeopt.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from edgeopt.console import Console
from edgeopt.data.dataset import Dataset
from edgeopt.errors import ConfigError, ModelError
from edgeopt.models import Created
from edgeopt.models.builders import split_name
from edgeopt.preprocess import PreprocessSpec
from edgeopt.stages.preprocessing import note_other_normalization, preprocessing
from edgeopt.stages.training import TrainingPlan


@dataclass(frozen=True)
class Prepared:
    """A model ready to be fine-tuned, how it takes its pictures, and how it will be trained."""

    created: Created
    spec: PreprocessSpec
    plan: TrainingPlan


def prepare(
    dataset: Dataset,
    data: DataConfig,
    model: ModelConfig,
    train: TrainConfig,
    augment: AugmentConfig,
    console: Console,
) -> Prepared:
    """Create the model and say where its weights come from; raises ModelError, ConfigError, DataError."""
    created = create(dataset, data, model, regularization(model, train))
    _say_weights(created, console)
    spec = preprocessing(created, data, dataset, console)
    note_other_normalization(created, spec, console)
    return Prepared(created, spec, TrainingPlan.for_finetuning(train, augment))


#: What the constructors of each source call dropout before the classifier and stochastic depth.
_DROPOUT = {"timm": "drop_rate", "torchvision": "dropout", "attr": "dropout"}
_DROP_PATH = {"timm": "drop_path_rate", "torchvision": "stochastic_depth_prob", "attr": "drop_path"}


def constructor_arguments(model: str, train: TrainConfig) -> dict[str, float]:
    """What ``train.dropout`` and ``train.drop_path`` are called by the constructor of ``model``, where stated."""
    source, _ = split_name(model)
    stated = {_DROPOUT[source]: train.dropout, _DROP_PATH[source]: train.drop_path}
    return {name: value for name, value in stated.items() if value is not None}


def regularization(model: ModelConfig, train: TrainConfig) -> dict[str, float]:
    """The constructor's arguments that ``train.dropout`` and ``train.drop_path`` stand for."""
    stated = constructor_arguments(model.name, train)
    if twice := [name for name in stated if name in model.arguments]:
        raise ConfigError(
            f"{twice[0]} is in model.arguments and in train too", fix="leave it out of model.arguments, or out of train"
        )
    return stated


def create(
    dataset: Dataset, data: DataConfig, model: ModelConfig, regularization: Mapping[str, float] | None = None
) -> Created:
    """The untrained model with a classifier for the classes of ``dataset``; raises ModelError."""
    try:
        return models.create(
            model.name,
            num_classes=len(dataset.classes),
            arguments={**model.arguments, **(regularization or {})},
            pretrained=model.pretrained,
            weights=Path(model.weights) if model.weights else None,
            image_size=data.image_size,
        )
    except ModelError as error:
        refused = [name for name in regularization or {} if f"unexpected keyword argument '{name}'" in error.message]
        if not refused:
            raise
        key = "train.drop_path" if refused[0] in _DROP_PATH.values() else "train.dropout"
        raise ModelError(f"{model.name} has no {refused[0]}", fix=f"leave {key} out, or take another model") from error


def _say_weights(created: Created, console: Console) -> None:
    console.say(f"{created.architecture.name}, weights: {created.weights_origin}")
    if created.dropped_keys:
        console.say(f"new classifier; not used from the weights: {', '.join(created.dropped_keys[:4])}")
