"""The gradients of one batch: within the memory there is, and averaged over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from edgeopt.train.memory import is_out_of_memory, release
from edgeopt.train.objectives import Objective
from edgeopt.train.probe import LAYOUTS, running
from edgeopt.train.processes import Processes
from edgeopt.train.state import State

Result = TypeVar("Result")


class Gradients:
    """Leaves a batch's gradients in the parameters of ``model``, which is on ``device``."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        device: torch.device,
        *,
        seed: int,
        processes: Processes,
        say: Callable[[str], None],
    ) -> None:
        self._model, self._objective, self._device = model, objective, device
        self._seed, self._processes, self._say = seed, processes, say

    def __call__(self, state: State, step: int, images: Tensor, targets: Tensor) -> float:
        """The loss of the batch at ``step``, over all processes; that of a part when it is not finite there."""
        value = self.within_memory(state, len(images), lambda: self._added_up(state, step, images, targets))
        return self._processes.average_gradients(self._model, value)

    def _added_up(self, state: State, step: int, images: Tensor, targets: Tensor) -> float:
        """The loss; gradients are added up over parts when the batch is too much at once."""
        # Seeded anew, so that a step is the same whether or not the process was killed before it.
        torch.manual_seed(self._seed * 1_000_003 + step + (self._processes.rank << 40))
        self._model.zero_grad(set_to_none=True)
        value, layout = 0.0, LAYOUTS[state.choice.memory_format]
        for some, wanted in zip(images.chunk(state.parts), targets.chunk(state.parts), strict=True):
            with running(state.choice, self._device):
                placed = some.to(self._device, memory_format=layout), wanted.to(self._device)
                loss = self._objective(self._model, *placed) * (len(some) / len(images))
            value += loss.item()
            loss.backward()  # type: ignore[no-untyped-call]
        return value

    def within_memory(self, state: State, pictures: int, work: Callable[[], Result]) -> Result:
        """What ``work`` gives; when memory runs out, done again with batches in twice as many parts."""
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error) or pictures // (2 * state.parts) < 2:
                    raise
            state.parts *= 2
            self._model.zero_grad(set_to_none=True)
            release()
            at_once = -(-pictures // state.parts)
            self._say(f"memory ran out: {at_once} pictures at a time from now on, added up to batches of {pictures}")
