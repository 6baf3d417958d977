"""Teachers by name: a variant or an ensemble of the run, another run, or a timm model that knows the classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeopt import models
from edgeopt.console import Console
from edgeopt.data.dataset import Dataset
from edgeopt.errors import ConfigError, MissingStageError, did_you_mean
from edgeopt.models.builders import require_known, timm_cfg
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run
from edgeopt.stages.engines import labels
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.voters import open_ensemble
from edgeopt.tables import Distill
from edgeopt.train.teacher import Adapted, EnsembleTeacher

_SHOWN = 3  # classes named in a message


@dataclass(frozen=True)
class Teacher:
    """``name`` as it was asked for; ``sha256`` of the weights, so that what it taught is known again."""

    name: str
    sha256: str
    open: Callable[[PreprocessSpec], nn.Module]

    def module(self, given: PreprocessSpec) -> nn.Module:
        """The teacher in eval mode on the CPU, for pictures that were prepared as ``given`` says."""
        return self.open(given).eval()


def find_teacher(run: Run, name: str, *, distill: Distill = "hinton", console: Console | None = None) -> Teacher:
    """Who is called ``name``: a float variant or an ensemble of ``run``, the folder of another run, or ``timm:NAME``.

    Of another run it is the original. Raises ConfigError for a teacher of other classes, an int8 one, and an ensemble
    where features are to be matched; MissingStageError for a name that is nobody's.
    """
    if name.startswith("timm:"):
        return _timm(run, name)
    if name in run.ensembles():
        if distill == "features":
            raise ConfigError(
                f"{name} is an ensemble: its members have features, it has none to match",
                fix="--distill hinton, dkd or dist, or one member as the teacher",
            )
        ensemble = open_ensemble(run, name)
        ensemble.require_whole()
        key = str(ensemble.record["key"])  # of its members' weights and how they vote
        return Teacher(name, key, lambda given: EnsembleTeacher(ensemble.voters(), ensemble.combination(), given))
    if name not in run.variants() and ("/" in name or (Path(name) / "run.json").is_file()):
        return _of_another_run(run, name, console)
    return _of_variant(name, open_variant(run, name))


def _of_variant(name: str, variant: Variant) -> Teacher:
    if variant.architecture.scheme is not None:
        raise ConfigError(
            f"{name} is int8, and a teacher should know more than its student", fix="name a float variant"
        )

    def module(given: PreprocessSpec) -> nn.Module:
        spec, model = variant.preprocess, variant.load()
        return model if spec == given else Adapted(model, spec, given)

    return Teacher(name, str(variant.record["outputs"]["model"]["sha256"]), module)


def _of_another_run(run: Run, name: str, console: Console | None) -> Teacher:
    if not (Path(name) / "run.json").is_file():
        raise MissingStageError(
            f"the teacher {name} is no run folder", fix="give a run's folder, or a name that edgeopt show lists"
        )
    other = Run.open(Path(name))
    theirs, ours = labels(other), labels(run)
    _require_same_classes(name, theirs, ours)
    if console is not None:
        _say_what_it_saw(run, other, console)
    teacher = _of_variant(name, open_variant(other, other.original()))
    if theirs == ours:
        return teacher
    columns = [theirs.index(one) for one in ours]
    known_by = hashlib.sha256(f"{teacher.sha256} {columns}".encode()).hexdigest()
    return Teacher(name, known_by, lambda given: _Columns(teacher.module(given), columns))


def _require_same_classes(name: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    if set(theirs) == set(ours):  # in whatever order
        return
    extra = [one for one in theirs if one not in ours]
    missing = [one for one in ours if one not in theirs]
    differing = [f"it has {_named(extra)}" if extra else "", f"it lacks {_named(missing)}" if missing else ""]
    raise ConfigError(
        f"the teacher {name} has other classes than this run: " + ", ".join(filter(None, differing)),
        fix="train a teacher on these classes, and name its run",
    )


def _named(classes: Sequence[str]) -> str:
    return ", ".join(f'"{one}"' for one in classes[:_SHOWN]) + (
        f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
    )


def _say_what_it_saw(run: Run, other: Run, console: Console) -> None:
    """Pictures that judge the student should not have taught its teacher."""
    taught = {item.sha256 for item in Dataset.read(other.data).of("train")}
    own = Dataset.read(run.data)
    for split in ("val", "test"):
        seen = sum(item.sha256 in taught for item in own.of(split))
        if seen:
            console.say(
                f"warning: {seen} {split} pictures of this run were among those the teacher {other.path} was trained "
                "on; what it teaches may flatter the figures"
            )


def _timm(run: Run, name: str) -> Teacher:
    """A pretrained model of timm, whose classes are those of ImageNet by their WordNet ids (n01440764)."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    bare = name.removeprefix("timm:")
    require_known("timm", bare)
    cfg = timm_cfg(bare)
    subset = infer_imagenet_subset(cfg)
    known = {label: index for index, label in enumerate(ImageNetInfo(subset).label_names())} if subset else {}
    wanted = labels(run)
    strangers = [one for one in wanted if one not in known]
    if strangers:
        count = cfg.get("num_classes") or "other"
        raise ConfigError(
            f"the teacher {name} was trained on {count} classes of its own, and {_named(strangers)} of this run "
            f"{'is' if len(strangers) == 1 else 'are'} not among them{did_you_mean(strangers[0], known)}",
            fix=f"edgeopt finetune DATA --model {bare} --run runs/teacher, then --teacher runs/teacher",
        )
    created = models.create(bare, num_classes=int(cfg["num_classes"]))
    spec = PreprocessSpec.model_validate(models.preprocess_of(created.architecture))
    teacher = _Columns(created.model, [known[one] for one in wanted])
    return Teacher(
        name, _hash(created.model), lambda given: teacher if spec == given else Adapted(teacher, spec, given)
    )


class _Columns(nn.Module):
    """The logits of some of a model's classes, which is what it would answer if there were no others."""

    columns: Tensor

    def __init__(self, model: nn.Module, columns: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, 3, height, width) to (N, ``columns``)."""
        chosen: Tensor = self.model(images)[:, self.columns]
        return chosen


def _hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
