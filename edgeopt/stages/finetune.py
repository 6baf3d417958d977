"""The first variant of a run: a model fine-tuned on the pictures, or one trained elsewhere and adopted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeopt import models
from edgeopt.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from edgeopt.console import Console, Silent
from edgeopt.data.ingest import ingest
from edgeopt.data.preview import write_preview
from edgeopt.errors import ConfigError
from edgeopt.run import stage_key
from edgeopt.stages.following import announce, announce_skipped, follow, together
from edgeopt.stages.preprocessing import preprocessing
from edgeopt.stages.problems import raise_together, training_problems
from edgeopt.stages.starting import (
    NAME,
    VERSION,
    Order,
    check_model,
    create,
    data_config,
    data_record,
    inputs_of,
    order_of,
    origins_of,
    say_weights,
    start,
)
from edgeopt.stages.training import TrainingPlan, evaluate_val, fit
from edgeopt.stages.variants import Variant, commit_variant
from edgeopt.train import clock
from edgeopt.train.processes import Processes, join


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

    ``augment`` replaces single values of the preset ``train.augment``. With ``train.teacher`` the training is
    distilled: see :func:`edgeopt.stages.teachers.find_teacher`. Interrupted, the same call goes on from its last
    checkpoint; finished, it returns what is there. With ``train.folds`` it is cross-validated: see
    :func:`edgeopt.stages.folds.cross_validate`. In processes that ``torchrun`` started, each calls this, takes its
    share of every batch, and gets the variant that the first one wrote. Raises ConfigError, DataError, ModelError,
    TrainingError, RunError.
    """
    begun = clock.now()  # train.time bounds the call: reading pictures and probes are in it
    console, model, train = console or Silent(), model or ModelConfig(), train or TrainConfig()
    data, augment = data_config(data), augment or AugmentConfig()
    raise_together(training_problems(train, augment, model), where="training")
    plan, processes = replace(TrainingPlan.for_finetuning(train, augment), begun=begun), join()
    with together(processes):
        if not processes.leads:
            return follow(plan, processes)
        order = order_of(start(data, run, console), data, model, train, augment, force=force, console=console)
        if train.folds is not None:
            from edgeopt.stages.folds import cross_validate

            return cross_validate(order, begun)
        return _lead(order, plan, processes)


def _lead(order: Order, plan: TrainingPlan, processes: Processes) -> Variant:
    """Fine-tune alone, or as the first of several processes, which alone reads the pictures' folder and writes."""
    opened, console = order.workspace, order.console
    inputs, config = order.inputs(), order.config()
    with opened.run.lock():
        key = stage_key(inputs=inputs, config=config, version=VERSION)
        stage = opened.run.stage("host", NAME, record="stage.json", key=key, force=order.force, resumes=True)
        if stage.done:
            record = stage.skipped(console)
            announce_skipped(processes, stage)
            return Variant(opened.run, stage.name, record, skipped=True)
        created, spec = order.create()
        say_weights(created, spec, console)
        announce(processes, stage, order, created, spec)
        result = fit(
            plan,
            created.model,
            opened,
            spec,
            folder=stage.folder,
            console=console,
            teacher=order.teacher,
            processes=processes,
        )
        variant = commit_variant(
            stage,
            created.model,
            created.architecture,
            spec,
            parent=None,
            stage_name="finetune",
            config=config,
            origin=order.origin(config),
            inputs=inputs,
            metrics=result,
            weights_origin=created.weights_origin,
            **order.taught_by(),
        )
        processes.wait()
        return variant


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
    data, augment = data_config(data), augment or AugmentConfig()
    raise_together(training_problems(train, augment, model), where="training")
    with console.task("reading pictures") as progress:
        dataset = ingest(data, progress=progress)
    # Only the picture's size and normalization are wanted of the model, not its weights.
    bare = model.model_copy(update={"pretrained": False, "weights": None})
    write_preview(
        file,
        dataset,
        preprocessing(create(dataset, data, bare), data, dataset, console),
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
    console, data = console or Silent(), data_config(data)
    if model.weights is None:
        raise ConfigError("adopt needs the trained weights", fix="add --weights FILE")
    check_model(model)
    opened = start(data, run, console)
    inputs = inputs_of(opened.run, model)
    config = {"data": data_record(data), "model": model.model_dump(exclude={"weights"})}
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
        spec = preprocessing(adopted, data, opened.dataset, console)
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
            origin=origins_of(config, data=data, model=model),
            inputs=inputs,
            metrics=metrics,
            weights_origin=adopted.weights_origin,
        )


def _warn_when_guessing(top1: float, classes: int, console: Console) -> None:
    if top1 < (1.0 + 1.0 / classes) / 2 and top1 < 2.0 / classes:
        console.say(
            f"warning: val top-1 is {top1:.1%}, about what guessing gets: check the order of the classes "
            "(alphabetical here), --image-size, and that these are the pictures it was trained on"
        )
