"""What a training knows between two steps, and how it survives a kill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.train import checkpoint
from edgeopt.train.config import LoopConfig
from edgeopt.train.probe import Choice
from edgeopt.train.processes import Processes

Tensors = Mapping[str, Tensor]
_SCHEMA = 6
_LAST, _BEST = "last.safetensors", "best"


@dataclass
class Best:
    """The epoch that validated best by ``score`` (0: the initial weights), and its weights on the CPU."""

    epoch: int = 0
    score: float = -1.0
    top1: float = -1.0
    loss: float = math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights; before any was judged its loss is none."""
        loss = self.loss if math.isfinite(self.loss) else None
        return {"epoch": self.epoch, "score": self.score, "top1": self.top1, "loss": loss}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], weights: dict[str, Tensor]) -> Best:
        """What :meth:`to_json` gave, with the weights."""
        return cls(**{**record, "loss": math.inf if record["loss"] is None else record["loss"], "weights": weights})

    def beaten_by(self, score: float, loss: float) -> bool:
        """Whether another epoch is better: by its score, then by loss."""
        return (score, -loss) > (self.score, -self.loss)


@dataclass
class State:
    """Epochs done, the last of them without improvement; pictures trained on; seconds of all and of steps alone.

    ``step`` steps of the epoch after those are done too, with losses that add up to ``loss_sum``. ``lr_drops`` is how
    often a plateau lowered the learning rate, ``parts`` in how many parts a batch is taken to fit into memory.
    ``elapsed`` is every second of this training, ``evaluation_seconds`` what the last validation took, ``planned`` the
    epochs that were thought to fit into its time, and ``over`` says that this time is over. With a loss on val beyond
    ``worst_loss`` an epoch is clearly worse than the start.
    """

    choice: Choice
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    idle_epochs: int = 0
    lr_drops: int = 0
    parts: int = 1
    images: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    estimate_seconds: float | None = None
    elapsed: float = 0.0
    evaluation_seconds: float = 0.0
    planned: int | None = None
    over: bool = False
    worst_loss: float | None = None
    best: Best = field(default_factory=Best)

    def to_json(self) -> dict[str, Any]:
        """Everything but the best weights."""
        record = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("best", "choice")}
        return {**record, "choice": asdict(self.choice), "best": self.best.to_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], weights: dict[str, Tensor]) -> State:
        """What :meth:`to_json` gave, with the best weights."""
        stated = {"choice": Choice(**record["choice"]), "best": Best.from_json(record["best"], weights)}
        return cls(**{**record, **stated})


class Store:
    """``checkpoints/`` of one training: ``last`` holds everything needed to go on, and the best weights.

    They are one file: of two, a kill in between would pair the best of one moment with the counters of another.
    ``identity`` is JSON-able and says which training this is: another one's checkpoint is not taken up.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder / "checkpoints"
        self._identity = dict(identity)

    def save(self, state: State, parts: Mapping[str, Tensors], *, finished: bool) -> None:
        """Write the state and ``parts`` (name -> tensors); a kill at any moment leaves the older ones or these."""
        record = {**state.to_json(), "schema": _SCHEMA, "identity": self._identity, "finished": finished}
        checkpoint.save(self._folder / _LAST, flattened({**parts, _BEST: state.best.weights}), record)

    def load(self) -> tuple[State, dict[str, dict[str, Tensor]]] | None:
        """The state and parts saved last (no parts when that training had finished); None when there are none.

        A checkpoint of another training, or one that is damaged, is none.
        """
        last = checkpoint.load(self._folder / _LAST)
        if last is None:
            return None
        tensors, record = last
        if record.pop("schema", None) != _SCHEMA or record.pop("identity") != self._identity:
            return None
        record.pop("finished")
        parts = by_part(tensors)
        weights = parts.pop(_BEST, {})  # none before an epoch was judged
        return State.from_json(record, weights), parts

    def exists(self) -> bool:
        """Whether there is a checkpoint, of whatever training."""
        return (self._folder / _LAST).is_file()


def flattened(parts: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """Tensors of parts as ``part/name``."""
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def by_part(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """What :func:`flattened` was given."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return parts


def shared(
    stored: tuple[State, dict[str, dict[str, Tensor]]] | None, processes: Processes
) -> tuple[State, dict[str, dict[str, Tensor]]] | None:
    """The leader's state and parts for every process; its answer None is everybody's."""
    if processes.alone:
        return stored
    record = processes.tell(stored and stored[0].to_json())
    parts = {**stored[1], _BEST: stored[0].best.weights} if stored else {}
    found = by_part(processes.tell_tensors(flattened(parts)))
    best = found.pop(_BEST, {})
    return None if record is None else (State.from_json(record, best), found)


def identity(model: nn.Module, config: LoopConfig, steps_per_epoch: int) -> dict[str, Any]:
    """Which training this is; see :class:`Store`."""
    stated = asdict(config)
    del stated["checkpoint_seconds"], stated["known_way"]
    # How much time is left for it may be another when it is resumed; that it is bounded may not.
    stated["time_seconds"] = None if config.time_seconds is None else "bounded"
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return {"config": stated, "steps_per_epoch": steps_per_epoch, "shapes": shapes}


def parts_of(model: nn.Module, optimizer: torch.optim.Optimizer, averaged: nn.Module | None) -> dict[str, Tensors]:
    """Every tensor that the next step depends on."""
    parts: dict[str, Tensors] = {"model": model.state_dict(), "optimizer": checkpoint.optimizer_tensors(optimizer)}
    return parts | ({"ema": averaged.state_dict()} if averaged is not None else {})


def restore(
    parts: Mapping[str, Tensors], model: nn.Module, optimizer: torch.optim.Optimizer, averaged: nn.Module | None
) -> None:
    """Put back what :func:`parts_of` gave; of a training that had finished there is nothing, only its best."""
    if not parts:
        return
    checkpoint.copy_into(model, parts["model"])
    checkpoint.restore_optimizer(optimizer, parts.get("optimizer", {}))
    if averaged is not None:
        checkpoint.copy_into(averaged, parts["ema"])
