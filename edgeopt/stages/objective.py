"""What one training of a run minimizes: the loss of its plan, and what a teacher answers, asked or recorded."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.data.dataset import Item
from edgeopt.data.loader import TrainLoader
from edgeopt.errors import RunError
from edgeopt.files import make_folder, read_npy, write_npy
from edgeopt.metrics import Float
from edgeopt.preprocess import PreprocessSpec
from edgeopt.stages.teachers import Teacher
from edgeopt.stages.workspace import Workspace
from edgeopt.train.distillation import Asked, DecoupledKD, Dist, Distillation, Divergence, Hinton
from edgeopt.train.features import FeatureMatching
from edgeopt.train.freezing import freeze_batchnorm_statistics
from edgeopt.train.layer_matching import LayerMatching, Matched
from edgeopt.train.losses import Loss, make_loss
from edgeopt.train.objectives import Classification, Objective, WithL1
from edgeopt.train.processes import Processes, training_device

if TYPE_CHECKING:
    from edgeopt.stages.training import TrainingPlan

_BATCH = 64  # of pictures a teacher answers at once


def objective_of(
    plan: TrainingPlan,
    model: nn.Module,
    workspace: Workspace,
    spec: PreprocessSpec,
    *,
    teacher: Teacher | None,
    loader: TrainLoader,
    processes: Processes,
    attached: ExitStack,
    matched: Matched | None = None,
) -> Objective:
    """What ``plan`` minimizes; what has to hang in ``model`` for it goes when ``attached`` is closed.

    Where every epoch shows the same pictures a teacher is asked once for each, and ``loader`` gives its answers.
    """
    objective: Objective
    loss = _loss(plan, workspace)
    whole = Asked(matched.whole) if matched and plan.match_weight else None
    asks = False
    if teacher is None:
        objective = Classification(loss)
    elif plan.distill == "features":
        example = torch.randn(2, *spec.input_shape, generator=torch.Generator().manual_seed(0))
        objective = FeatureMatching(teacher.module(spec), model, example, weight=plan.distill_weight, loss=loss)
        attached.enter_context(objective.adapted(model, seed=plan.loop.seed))
    else:
        asks = not loader.repeats and matched is not None and matched.sha256 == teacher.sha256
        asked = whole if asks and whole else teacher.module(spec)
        if isinstance(asked, nn.Module) and loader.repeats:
            loader.answers = _recorded(teacher, asked, loader, workspace, spec, processes)
        objective = Distillation(
            None if loader.repeats else asked, _divergence(plan), weight=plan.distill_weight, loss=loss
        )
    if matched and whole:
        objective = LayerMatching(objective, whole, matched.outputs, weight=plan.match_weight, asks=asks)
    if plan.l1:
        objective = WithL1(objective, plan.l1)
    if plan.freeze_batchnorm:
        objective = _FrozenBatchNorm(objective)
    return objective


def _loss(plan: TrainingPlan, workspace: Workspace) -> Loss:
    counts = class_counts(workspace.dataset.of("train"), len(workspace.dataset.classes))
    return make_loss(
        plan.loss, class_counts=counts, label_smoothing=plan.label_smoothing, arguments=plan.loss_arguments
    )


def class_counts(items: Sequence[Item], classes: int) -> list[int] | list[float]:
    """How many pictures of each class an epoch shows: all of them, or the share of their weights where those differ.

    A class that its manifest shows as often as another is then no rare one, which a loss would have to make up for.
    """
    found = Counter(item.label for item in items)
    if len({item.weight for item in items}) < 2:  # equal ones choose nothing
        return [found[label] for label in range(classes)]
    weights = [0.0] * classes
    for item in items:
        weights[item.label] += item.weight
    scale = len(items) / sum(weights)
    return [scale * weight for weight in weights]


def _divergence(plan: TrainingPlan) -> Divergence:
    assert plan.temperature is not None
    kinds = {"hinton": Hinton, "dkd": DecoupledKD, "dist": Dist}
    made: Divergence = kinds[plan.distill](plan.temperature)
    return made


def _recorded(
    teacher: Teacher,
    asked: nn.Module,
    loader: TrainLoader,
    workspace: Workspace,
    spec: PreprocessSpec,
    processes: Processes,
) -> Float:
    """The teacher's logits float32 (N, classes) of the train pictures, mapped: asked for once, then found again.

    The file's name says whose answers to which pictures they are, and what is in it: a damaged one is made again.
    """
    items = ",".join(item.sha256 for item in workspace.dataset.of("train"))
    key = hashlib.sha256(f"{teacher.sha256} {spec.key} {items}".encode()).hexdigest()[:16]
    folder = make_folder(workspace.run.data / "answers")

    def record() -> None:
        if _stored(folder, key) is None:
            answers = _answers(asked, loader, workspace)
            write_npy(folder / f"{key}-{_digest(answers)}.npy", answers)

    processes.led(record)
    found = _stored(folder, key)
    assert found is not None
    return found


def _stored(folder: Path, key: str) -> Float | None:
    for path in folder.glob(f"{key}-*.npy"):
        with suppress(RunError):  # damaged: as if it were not there
            answers: Float = read_npy(path, "<f4", mapped=True)
            if _digest(answers) == path.stem[-16:]:
                return answers
    return None


def _digest(answers: Float) -> str:
    return hashlib.sha256(np.ascontiguousarray(answers).data).hexdigest()[:16]


def _answers(teacher: nn.Module, loader: TrainLoader, workspace: Workspace) -> Float:
    """float32 (N, classes) in the order of the loader's pictures."""
    device, count, found = training_device(), len(loader.labels), []
    teacher = teacher.to(device).to(memory_format=torch.channels_last)
    with workspace.console.task("asking the teacher") as progress, torch.inference_mode():
        for start in range(0, count, _BATCH):
            images = loader.plain(range(start, min(start + _BATCH, count)))
            found.append(teacher(images.to(device)).float().cpu().numpy())
            progress(min(start + _BATCH, count), count)
    return np.concatenate(found).astype(np.float32)


class _FrozenBatchNorm:
    """The objective with BatchNorm's statistics left alone."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        freeze_batchnorm_statistics(model)
        return self._objective(model, images, targets)
