"""What the other processes of a fine-tuning do: they help to train what the first one says, and write nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeopt.allotment import process_count
from edgeopt.config import TrainConfig
from edgeopt.console import Silent
from edgeopt.errors import ConfigError, EdgeoptError, ProcessError, RunError
from edgeopt.models import Created
from edgeopt.models.architecture import parse
from edgeopt.models.builders import build
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run, Stage
from edgeopt.stages.starting import Order
from edgeopt.stages.teachers import find_teacher
from edgeopt.stages.training import TrainingPlan, fit
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.workspace import open_workspace
from edgeopt.train.processes import Processes, divided, leave


@contextmanager
def together(processes: Processes) -> Iterator[None]:
    """An error in the block cuts this process off, so that the others notice instead of waiting for it."""
    try:
        yield
    except BaseException as error:
        if processes.alone:
            raise
        leave()
        if processes.leads or not isinstance(error, EdgeoptError) or isinstance(error, ProcessError):
            raise
        raise ProcessError(f"process {processes.rank}: {error.message}", fix=error.fix, own=True) from error


def require_shareable(train: TrainConfig) -> None:
    """Raises ConfigError for what several processes cannot share: folds, and a batch that does not divide equally."""
    count, size = process_count(), train.batch_size
    if count > 1 and train.folds is not None:
        raise ConfigError(
            f"train.folds: {count} processes share one training, and folds are several",
            fix="leave torchrun out, or --folds",
        )
    if size == "auto" or size % count == 0:
        return
    fitting = sorted({divided(size, count), divided(size, count) + count})
    raise ConfigError(
        f"train.batch_size: {size} pictures cannot be divided equally over {count} processes",
        fix=f"--batch-size {' or '.join(map(str, fitting))}",
    )


def announce(processes: Processes, stage: Stage, order: Order, created: Created, spec: PreprocessSpec) -> None:
    """Tell the other processes what is trained."""
    root = order.workspace.dataset.root
    told = {"architecture": created.architecture.to_json(), "spec": spec.to_json(), "root": root}
    _tell(processes, stage, {**told, **order.taught_by(), "folder": str(stage.folder.absolute())})


def announce_skipped(processes: Processes, stage: Stage) -> None:
    """Tell the other processes that it was trained before."""
    _tell(processes, stage, {})


def _tell(processes: Processes, stage: Stage, told: dict[str, Any]) -> None:
    processes.tell({**told, "run": str(stage.run.path.absolute()), "variant": stage.name})


def follow(plan: TrainingPlan, processes: Processes) -> Variant:
    """Train what the first process announces; the variant it commits.

    Run folder and pictures must be at the same place for all. Raises RunError, DataError, TrainingError.
    """
    told = processes.tell(None)
    path = Path(told["run"])
    if "architecture" in told:
        try:
            workspace = open_workspace(Run.open(path), data=told["root"])
        except EdgeoptError as error:
            raise RunError(
                f"what the first process sees is not here: {error.message}",
                fix="put pictures and run folder where every node has them at the same place: --run FOLDER",
            ) from error
        model = build(parse(told["architecture"], where="the first process"))
        spec = PreprocessSpec.model_validate(told["spec"])
        teacher = find_teacher(workspace.run, told["teacher"]) if "teacher" in told else None
        folder = Path(told["folder"])
        fit(plan, model, workspace, spec, folder=folder, console=Silent(), teacher=teacher, processes=processes)
        processes.wait()
    return open_variant(Run.open(path), told["variant"])
