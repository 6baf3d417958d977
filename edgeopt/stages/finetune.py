"""The first variant of a run: a model fine-tuned on the pictures, or one trained elsewhere and adopted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from edgeopt import models
from edgeopt.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig, origins, require_compatible
from edgeopt.console import Console, Silent
from edgeopt.data.dataset import Dataset
from edgeopt.data.ingest import ingest
from edgeopt.data.manifest_source import is_manifest
from edgeopt.data.preview import write_preview
from edgeopt.data.torchvision_source import is_reference
from edgeopt.errors import ConfigError, ModelError, RunError
from edgeopt.files import sha256
from edgeopt.models import Created
from edgeopt.models.builders import require_known, split_name
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run, check_name, stage_key
from edgeopt.stages.training import TrainingPlan, evaluate_val, fit
from edgeopt.stages.variants import Variant, commit_variant
from edgeopt.stages.workspace import Workspace, open_workspace
from edgeopt.train.losses import takes_soft_targets
from edgeopt.train.optimizer import require_known_optimizer

VERSION = 1
NAME = "float"
#: What of the pictures' configuration is in the dataset's fingerprint, and may be called otherwise the next time.
_ELSEWHERE = {"path", "exclude", "group_near"}


def finetune(
    data: DataConfig | str | Path,
    model: ModelConfig | None = None,
    train: TrainConfig | None = None,
    *,
    augment: AugmentConfig | None = None,
    run: Path | None = None,
    force: bool = False,
    console: Console | None = None,
) -> Variant:
    """Fine-tune ``model`` on the pictures of ``data``, in the run folder ``run`` (default: under ``./runs``).

    ``augment`` replaces single values of the preset ``train.augment``. Interrupted, the same call goes on from its last
    checkpoint; finished, it returns what is there. Raises ConfigError, DataError, ModelError, TrainingError, RunError.
    """
    console, model, train = console or Silent(), model or ModelConfig(), train or TrainConfig()
    data, augment = _data_config(data), augment or AugmentConfig()
    require_compatible(train, augment, soft_targets=takes_soft_targets(train.loss))
    require_known_optimizer(train.optimizer)
    _check_model(model)
    opened = _start(data, run, console)
    inputs = _inputs(opened.run, model)
    config = {
        "data": data.model_dump(exclude=_ELSEWHERE),
        "model": model.model_dump(exclude={"weights"}),
        "train": train.model_dump(),
        "augment": augment.model_dump(),
    }
    with opened.run.lock():
        key = stage_key(inputs=inputs, config=config, version=VERSION)
        stage = opened.run.stage("host", NAME, record="stage.json", key=key, force=force, resumes=True)
        if stage.done:
            return Variant(opened.run, stage.name, stage.skipped(console), skipped=True)
        created = _create(opened.dataset, data, model, regularization(model, train))
        _say_weights(created, console)
        spec = _spec(created, data)
        plan = TrainingPlan.for_finetuning(train, augment)
        result = fit(plan, created.model, opened, spec, folder=stage.folder, console=console)
        return commit_variant(
            stage,
            created.model,
            created.architecture,
            spec,
            parent=None,
            stage_name="finetune",
            config=config,
            origin=_origins(config, data=data, model=model, train=train, augment=augment),
            inputs=inputs,
            metrics=result,
            weights_origin=created.weights_origin,
        )


def augment_preview(
    data: DataConfig | str | Path,
    file: Path,
    model: ModelConfig | None = None,
    train: TrainConfig | None = None,
    *,
    augment: AugmentConfig | None = None,
    console: Console | None = None,
) -> Path:
    """Write to the PNG ``file`` a grid of train pictures as :func:`finetune` would see them; nothing is trained.

    A row a picture: first as evaluation sees it, then as the first epochs do. Raises ConfigError, DataError and
    ModelError.
    """
    console, model, train = console or Silent(), model or ModelConfig(), train or TrainConfig()
    data, augment = _data_config(data), augment or AugmentConfig()
    require_compatible(train, augment)
    _check_model(model)
    with console.task("reading pictures") as progress:
        dataset = ingest(data, progress=progress)
    # Only the picture's size and normalization are wanted of the model, not its weights.
    bare = model.model_copy(update={"pretrained": False, "weights": None})
    write_preview(
        file,
        dataset,
        _spec(_create(dataset, data, bare), data),
        augment=train.augment,
        flip=train.flip,
        changes=augment,
        epochs=train.epochs,
        seed=train.seed,
        max_pixels=data.max_pixels,
    )
    return file


def adopt(
    data: DataConfig | str | Path,
    model: ModelConfig,
    *,
    run: Path | None = None,
    force: bool = False,
    console: Console | None = None,
) -> Variant:
    """Make the model trained elsewhere in ``model.weights`` the run's original; nothing is trained.

    The weights are loaded strictly and never unpickled. Its val accuracy is measured, so that a wrong class order or
    preprocessing shows at once. Raises DataError, ModelError, RunError.
    """
    console, data = console or Silent(), _data_config(data)
    if model.weights is None:
        raise ConfigError("adopt needs the trained weights", fix="add --weights FILE")
    _check_model(model)
    opened = _start(data, run, console)
    inputs = _inputs(opened.run, model)
    config = {"data": data.model_dump(exclude=_ELSEWHERE), "model": model.model_dump(exclude={"weights"})}
    with opened.run.lock():
        key = stage_key(inputs=inputs, config=config, version=VERSION)
        stage = opened.run.stage("host", NAME, record="stage.json", key=key, force=force)
        if stage.done:
            return Variant(opened.run, stage.name, stage.skipped(console), skipped=True)
        adopted = models.adopt(
            model.name,
            Path(model.weights),
            num_classes=len(opened.dataset.classes),
            arguments=model.arguments,
            image_size=data.image_size,
        )
        spec = _spec(adopted, data)
        metrics = evaluate_val(adopted.model, opened, spec)
        _warn_when_guessing(metrics["val_top1"], len(opened.dataset.classes), console)
        return commit_variant(
            stage,
            adopted.model,
            adopted.architecture,
            spec,
            parent=None,
            stage_name="adopt",
            config=config,
            origin=_origins(config, data=data, model=model),
            inputs=inputs,
            metrics=metrics,
            weights_origin=adopted.weights_origin,
        )


def _origins(config: dict[str, dict[str, Any]], **tables: BaseModel) -> dict[str, dict[str, str]]:
    return {name: origins(table, config[name]) for name, table in tables.items()}


def _data_config(data: DataConfig | str | Path) -> DataConfig:
    return data if isinstance(data, DataConfig) else DataConfig(path=str(data))


def _start(data: DataConfig, run: Path | None, console: Console) -> Workspace:
    """Read the pictures and open the run that holds them, made on first use."""
    with console.task("reading pictures") as progress:
        dataset = ingest(data, progress=progress)
    _say_dataset(dataset, console)
    path = run or _default_path(data.path, dataset.fingerprint)
    opened = Run.create(
        path, data_root=dataset.root, data=data.model_dump(mode="json"), fingerprint=dataset.fingerprint
    )
    with opened.lock():
        if not (opened.data / "split.json").is_file():
            dataset.write(opened.data)
        elif _issues(Dataset.read(opened.data)) != _issues(dataset):  # the pictures are the same, what is beside is not
            dataset.write_issues(opened.data)
    console.say(f"run: {opened.path}")
    return open_workspace(opened, data=dataset.root, console=console)


def _default_path(source: str, fingerprint: str) -> Path:
    """``runs/<name of the data>``, or the first ``-2``, ``-3``... that holds this dataset or nothing."""
    path = Path(source).absolute()
    if is_reference(source):
        name = source.split("@")[0].split(":", 1)[1]
    else:
        name = path.stem if is_manifest(path) else path.name
    name = check_name(name.lower() or "run")
    for number in range(1, 1000):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if Run.is_free(path):
            return path
        if (path / "run.json").is_file() and Run.open(path).info["fingerprint"] == fingerprint:
            return path
    raise RunError(f"there are too many runs called {name}", fix="give --run FOLDER")


def _check_model(model: ModelConfig) -> None:
    """A misspelt name or path is said before any picture is read."""
    require_known(*split_name(model.name))
    if model.weights is not None and not Path(model.weights).is_file():
        raise ConfigError(f"the weights file {model.weights} does not exist", fix="check the path")


def _inputs(run: Run, model: ModelConfig) -> dict[str, str]:
    inputs = {"dataset": str(run.info["fingerprint"])}
    if model.weights is not None:
        inputs["weights"] = sha256(Path(model.weights))
    return inputs


#: What the constructors of each source call dropout before the classifier and stochastic depth.
_DROPOUT = {"timm": "drop_rate", "torchvision": "dropout", "attr": "dropout"}
_DROP_PATH = {"timm": "drop_path_rate", "torchvision": "stochastic_depth_prob", "attr": "drop_path"}


def regularization(model: ModelConfig, train: TrainConfig) -> dict[str, float]:
    """The constructor's arguments that ``train.dropout`` and ``train.drop_path`` stand for."""
    source, _ = split_name(model.name)
    stated = {_DROPOUT[source]: train.dropout, _DROP_PATH[source]: train.drop_path}
    if twice := [name for name, value in stated.items() if value is not None and name in model.arguments]:
        raise ConfigError(
            f"{twice[0]} is in model.arguments and in train too", fix="leave it out of model.arguments, or out of train"
        )
    return {name: value for name, value in stated.items() if value is not None}


def _create(
    dataset: Dataset, data: DataConfig, model: ModelConfig, regularization: Mapping[str, float] | None = None
) -> Created:
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
        refused = [name for name in regularization or {} if f"takes no argument {name}" in error.message]
        if not refused:
            raise
        key = "train.drop_path" if refused[0] in _DROP_PATH.values() else "train.dropout"
        raise ModelError(f"{model.name} has no {refused[0]}", fix=f"leave {key} out, or take another model") from error


def _spec(created: Created, data: DataConfig) -> PreprocessSpec:
    values: dict[str, Any] = models.preprocess_of(created.architecture, image_size=data.image_size)
    return PreprocessSpec.model_validate({**values, "resize": data.resize})


def _say_dataset(dataset: Dataset, console: Console) -> None:
    counts = dataset.counts()
    console.say(
        f"{len(dataset.items)} pictures of {len(dataset.classes)} classes: "
        f"{counts['train']} train, {counts['val']} val, {counts['test']} test"
    )
    if dataset.set_aside:
        path, reason = dataset.set_aside[0]
        console.say(f"set aside: {len(dataset.set_aside)} files (first: {path}: {reason}); all are in data/issues.json")
    if others := dict(dataset.ignored).get("not a picture"):
        console.say(f"passed over: {others} files whose names are not of pictures")
    for note in dataset.notes:
        console.say(f"note: {note}")


def _issues(dataset: Dataset) -> tuple[object, ...]:
    return dataset.set_aside, dataset.ignored, dataset.notes


def _say_weights(created: Created, console: Console) -> None:
    console.say(f"{created.architecture.name}, weights: {created.weights_origin}")
    if created.dropped_keys:
        console.say(f"new classifier; not used from the weights: {', '.join(created.dropped_keys[:4])}")


def _warn_when_guessing(top1: float, classes: int, console: Console) -> None:
    if top1 < (1.0 + 1.0 / classes) / 2 and top1 < 2.0 / classes:
        console.say(
            f"warning: val top-1 is {top1:.1%}, about what guessing gets: check the order of the classes "
            "(alphabetical here), --image-size, and that these are the pictures it was trained on"
        )
