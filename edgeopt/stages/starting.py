"""What every way to a run's first variant shares: the pictures read, the run opened, the model created."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from edgeopt import models
from edgeopt.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig, origins
from edgeopt.console import Console
from edgeopt.data.dataset import Dataset
from edgeopt.data.ingest import ingest
from edgeopt.data.manifest_source import is_manifest
from edgeopt.data.torchvision_source import is_reference
from edgeopt.errors import ConfigError, ModelError, RunError
from edgeopt.files import sha256
from edgeopt.models import Created
from edgeopt.models.builders import require_known, split_name
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run, check_name
from edgeopt.stages.preprocessing import note_other_normalization, preprocessing
from edgeopt.stages.teachers import Teacher, find_teacher
from edgeopt.stages.workspace import Workspace, open_workspace
from edgeopt.tables import Taught

VERSION = 1
NAME = "float"
_KINDS = 5  # reasons for setting pictures aside that are said
#: What of the pictures' configuration is in the dataset's fingerprint, and may be called otherwise the next time.
_ELSEWHERE = {"path", "exclude", "group_near"}


@dataclass(frozen=True)
class Order:
    """One fine-tuning as it was asked for, on pictures that were read."""

    workspace: Workspace
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    augment: AugmentConfig
    force: bool
    console: Console
    teacher: Teacher | None = None

    @property
    def run(self) -> Run:
        return self.workspace.run

    def config(self, *, folds: bool = False) -> dict[str, dict[str, Any]]:
        """What the record states, and what decides whether it was made before; ``folds`` for what has any."""
        # Where the teacher lies does not matter, its hash is an input; without one nothing of it is said.
        unsaid = {"teacher"} if self.teacher else set(Taught.model_fields)
        return {
            "data": data_record(self.data),
            "model": self.model.model_dump(exclude={"weights"}),
            "train": self.train.model_dump(exclude=unsaid if folds else {*unsaid, "folds", "keep"}),
            "augment": self.augment.model_dump(),
        }

    def origin(self, config: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
        """Who stated each value of ``config``."""
        tables = {"data": self.data, "model": self.model, "train": self.train, "augment": self.augment}
        return origins_of(config, **tables)

    def inputs(self) -> dict[str, str]:
        """Hashes of what the training starts from, and of its teacher."""
        teacher = {"teacher": self.teacher.sha256} if self.teacher else {}
        return {**inputs_of(self.run, self.model), **teacher}

    def taught_by(self) -> dict[str, Any]:
        """What the record states of the teacher, if there is one."""
        return {"teacher": self.teacher.name} if self.teacher else {}

    def create(self, *, preprocess: PreprocessSpec | None = None) -> tuple[Created, PreprocessSpec]:
        """The untrained model and its preprocessing, or ``preprocess`` where that is known already.

        Random weights are drawn from ``train.seed``. Raises ModelError, ConfigError, DataError.
        """
        dataset = self.workspace.dataset
        stated = regularization(self.model, self.train)
        created = create(dataset, self.data, self.model, stated, seed=self.train.seed)
        return created, preprocess or preprocessing(created, self.data, dataset, self.console)


def order_of(
    workspace: Workspace,
    data: DataConfig,
    model: ModelConfig,
    train: TrainConfig,
    augment: AugmentConfig,
    *,
    force: bool,
    console: Console,
) -> Order:
    """The order with its teacher found, where it has one; raises ConfigError, MissingStageError."""
    teacher = None
    if train.teacher is not None:
        teacher = find_teacher(workspace.run, train.teacher, distill=train.distill, console=console)
    return Order(workspace, data, model, train, augment, force, console, teacher)


def data_record(data: DataConfig) -> dict[str, Any]:
    """Of the pictures' configuration what a record states."""
    return data.model_dump(exclude=_ELSEWHERE)


def origins_of(config: Mapping[str, Mapping[str, Any]], **tables: BaseModel) -> dict[str, dict[str, str]]:
    """Who stated each value of ``config``, table by table."""
    return {name: origins(table, config[name]) for name, table in tables.items()}


def data_config(data: DataConfig | str | Path) -> DataConfig:
    """Where the pictures are as a configuration."""
    return data if isinstance(data, DataConfig) else DataConfig(path=str(data))


def start(data: DataConfig, run: Path | None, console: Console, *, wait_seconds: float = 0.0) -> Workspace:
    """Read the pictures and open the run that holds them, made on first use.

    ``wait_seconds`` is how long to wait for others that hold the run. Raises DataError, ConfigError, RunError.
    """
    with console.task("reading pictures") as progress:
        dataset = ingest(data, progress=progress)
    _say_dataset(dataset, console)
    path = run or _default_path(data.path, dataset.fingerprint)
    opened = Run.create(
        path,
        data_root=dataset.root,
        data=data.model_dump(mode="json"),
        fingerprint=dataset.fingerprint,
        wait_seconds=wait_seconds,
    )
    with opened.lock(wait_seconds):
        written = Dataset.read(opened.data) if (opened.data / "split.json").is_file() else None
        if written is None or written.items != dataset.items:  # of an older run, or its groups are others
            dataset.write(opened.data)
        elif _issues(written) != _issues(dataset):  # the pictures are the same, what is beside is not
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


def check_model(model: ModelConfig) -> None:
    """A misspelt name or path is said before any picture is read."""
    require_known(*split_name(model.name))
    check_weights(model)


def check_weights(model: ModelConfig) -> None:
    """Raises ConfigError when the file the model's weights are to come from is not there."""
    if model.weights is not None and not Path(model.weights).is_file():
        raise ConfigError(f"the weights file {model.weights} does not exist", fix="check the path")


def inputs_of(run: Run, model: ModelConfig) -> dict[str, str]:
    """Hashes of the pictures and of the weights a training starts from."""
    inputs = {"dataset": str(run.info["fingerprint"])}
    if model.weights is not None:
        inputs["weights"] = sha256(Path(model.weights))
    return inputs


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
    dataset: Dataset,
    data: DataConfig,
    model: ModelConfig,
    regularization: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
) -> Created:
    """The untrained model with a classifier for the classes of ``dataset``; raises ModelError.

    Random weights depend on ``seed``, not on what was drawn before; torch's generators are left as they were found.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            # The CPU's generator alone, since models are made there: torch.manual_seed would reset the GPU's too.
            torch.default_generator.manual_seed(seed)
            return models.create(
                model.name,
                num_classes=len(dataset.classes),
                arguments={**model.arguments, **(regularization or {})},
                pretrained=model.pretrained,
                weights=Path(model.weights) if model.weights else None,
                image_size=data.image_size,
            )
    except ModelError as error:
        refused = [name for name in regularization or {} if f" takes no argument {name}" in error.message]
        if not refused:
            raise
        key = "train.drop_path" if refused[0] in _DROP_PATH.values() else "train.dropout"
        raise ModelError(f"{model.name} has no {refused[0]}", fix=f"leave {key} out, or take another model") from error


def _say_dataset(dataset: Dataset, console: Console) -> None:
    counts = dataset.counts()
    console.say(
        f"{len(dataset.items)} pictures of {len(dataset.classes)} classes: "
        f"{counts['train']} train, {counts['val']} val, {counts['test']} test"
    )
    if dataset.set_aside:
        by_kind: dict[str, list[str]] = {}
        for path, reason in dataset.set_aside:
            by_kind.setdefault(re.split(r"[:(]", reason)[0].strip(), []).append(path)
        kinds = sorted(by_kind.items(), key=lambda item: -len(item[1]))
        listed = [f"{len(paths)} as {paths[0]}: {kind}" for kind, paths in kinds[:_KINDS]]
        listed += [f"{sum(len(paths) for _, paths in kinds[_KINDS:])} for other reasons"] * (len(kinds) > _KINDS)
        files = f"{len(dataset.set_aside)} {'file' if len(dataset.set_aside) == 1 else 'files'}"
        console.say(f"set aside: {files} ({'; '.join(listed)}); all are named in the run's data/issues.json")
    if others := dict(dataset.ignored).get("not a picture"):
        console.say(f"passed over: {others} {'file' if others == 1 else 'files'} not named as pictures are")
    for note in dataset.notes:
        console.say(f"note: {note}")


def _issues(dataset: Dataset) -> tuple[object, ...]:
    return dataset.set_aside, dataset.ignored, dataset.notes


def say_weights(created: Created, spec: PreprocessSpec, console: Console) -> None:
    """Where the weights come from, and whether they were trained on pictures that were normalized otherwise."""
    console.say(f"{created.architecture.name}, weights: {created.weights_origin}")
    if created.dropped_keys:
        console.say(f"new classifier; not used from the weights: {', '.join(created.dropped_keys[:4])}")
    note_other_normalization(created, spec, console)
