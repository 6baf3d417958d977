"""How long a training will take, by a few steps of it; and how many epochs fit into a time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from edgeopt.console import duration
from edgeopt.errors import TrainingError
from edgeopt.train.freezing import Freezing
from edgeopt.train.probe import Choice, ProbeResult

_LOADED = 3  # batches, of whose times the median counts


@dataclass(frozen=True)
class Forecast:
    """Seconds of a step of ``pictures``, its batch's making included, and of a validation; run as ``choice``."""

    choice: Choice
    pictures: int
    step_seconds: float
    evaluation_seconds: float
    epochs: int
    steps_per_epoch: int

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        return self.epochs * self._epoch

    @property
    def _epoch(self) -> float:
        return self.steps_per_epoch * self.step_seconds + self.evaluation_seconds

    def fitting(self, seconds: float) -> float:
        """Epochs that ``seconds`` are enough for, as far as they are wanted; a part of the last counts as a part.

        Every epoch begun is validated, the last one too.
        """
        if seconds >= self.seconds:
            return float(self.epochs)
        whole = math.floor(max(0.0, seconds) / self._epoch)
        steps = (seconds - whole * self._epoch - self.evaluation_seconds) / self.step_seconds
        return min(float(self.epochs), whole + max(0.0, steps) / self.steps_per_epoch)

    def words(self, limit: float | None, left: float) -> str:
        """What to say before training; ``left`` of the ``limit`` (seconds, None for none) are still to be had."""
        how = f"at {self.pictures / self.step_seconds:.0f} pictures/s ({self.choice.precision}, "
        how += f"{self.choice.memory_format})"
        if limit is None or self.fitting(left) >= self.epochs:
            epochs = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
            return f"training will take about {duration(self.seconds)}: {epochs} {how}"
        fits = self.fitting(left)
        return (
            f"{duration(limit)} are enough for about {fits:.1f} of {self.epochs} epochs {how}; "
            "the learning rate will be at its lowest when they are over"
        )


def first_batch(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], float]:
    """The first batch, and the median seconds that the first few took to come; raises TrainingError without any."""
    source = iter(batches)
    found: list[tuple[Tensor, Tensor]] = []
    seconds: list[float] = []
    while len(found) < _LOADED:
        start = time.perf_counter()
        batch = next(source, None)
        if batch is None:
            break
        seconds.append(time.perf_counter() - start)
        found.append(batch)
    if not found:
        raise TrainingError("there are no batches to train on", fix="add pictures to train")
    return found[0], statistics.median(seconds)


def measure(
    timed: Callable[[Sequence[Choice]], ProbeResult], choices: Sequence[Choice], freezing: Freezing, *, steps: int
) -> tuple[ProbeResult, float]:
    """The fastest of ``choices`` for the layers trained in the last of ``steps``, and seconds of a mean step with it.

    ``timed`` probes choices with the model frozen as ``freezing`` left it.
    """
    freezing.apply(steps)
    found = timed(choices)
    if not freezing.changes:
        return found, found.step_seconds
    freezing.apply(0)
    alone = timed([found.best]).step_seconds
    return found, alone + freezing.share() * (found.step_seconds - alone)
