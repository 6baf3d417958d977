"""What a training knows between two steps, and how it survives a kill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeopt.train import checkpoint
from edgeopt.train.probe import Choice

Tensors = Mapping[str, Tensor]
_SCHEMA = 4
_BEST, _LAST = "best.safetensors", "last.safetensors"


@dataclass
class Best:
    """The epoch that validated best by ``score`` (0: the initial weights), and its weights on the CPU."""

    epoch: int = 0
    score: float = -1.0
    top1: float = -1.0
    loss: float = math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)

    def beaten_by(self, score: float, loss: float) -> bool:
        """Whether another epoch is better: by its score, then by loss."""
        return (score, -loss) > (self.score, -self.loss)


@dataclass
class State:
    """Epochs done, the last of them without improvement; pictures trained on; seconds of all and of steps alone.

    ``step`` steps of the epoch after those are done too, with losses that add up to ``loss_sum``. ``lr_drops`` is how
    often a plateau lowered the learning rate, ``parts`` in how many parts a batch is taken to fit into memory.
    ``elapsed`` is every second of this training, ``evaluation_seconds`` what the last validation took, ``planned`` the
    epochs that were thought to fit into its time, and ``over`` says that this time is over.
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
    best: Best = field(default_factory=Best)


class Store:
    """``checkpoints/`` of one training: ``best`` holds the best weights, ``last`` everything needed to go on.

    ``identity`` is JSON-able and says which training this is: another one's checkpoint is not taken up.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder / "checkpoints"
        self._identity = dict(identity)

    def save(self, state: State, parts: Mapping[str, Tensors], *, finished: bool) -> None:
        """Write the state and ``parts`` (name -> tensors); killed in between, the older ``last`` finds a valid best."""
        best = state.best
        if best.weights:
            judged = {"epoch": best.epoch, "score": best.score, "top1": best.top1, "loss": best.loss}
            checkpoint.save(self._folder / _BEST, best.weights, judged)
        record = {item.name: getattr(state, item.name) for item in fields(state) if item.name not in ("best", "choice")}
        record |= {"schema": _SCHEMA, "identity": self._identity, "finished": finished, "choice": asdict(state.choice)}
        flat = {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        checkpoint.save(self._folder / _LAST, flat, record)

    def load(self) -> tuple[State, dict[str, dict[str, Tensor]]] | None:
        """The state and parts saved last (no parts when that training had finished); None when there are none.

        A checkpoint of another training, or one that is damaged, is none.
        """
        last, best = checkpoint.load(self._folder / _LAST), checkpoint.load(self._folder / _BEST)
        if last is None or best is None:
            return None
        tensors, record = last
        if record.pop("schema", None) != _SCHEMA or record.pop("identity") != self._identity:
            return None
        record.pop("finished")
        state = State(**{**record, "choice": Choice(**record["choice"])}, best=Best(weights=best[0], **best[1]))
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        return state, parts

    def exists(self) -> bool:
        """Whether there is a checkpoint, of whatever training."""
        return (self._folder / _LAST).is_file()
