"""Finds the fastest precision and memory format for training this model here, by a few interleaved steps of each."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgeopt.environment import has_bf16
from edgeopt.errors import TrainingError
from edgeopt.train.objectives import Objective

Precision = Literal["fp32", "bf16"]
Layout = Literal["channels_last", "contiguous"]
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_GATHERED = 8  # floats of an AVX2 register
MOST_ROUNDS = 6
_LEAST_ROUNDS = 3  # among several choices: a first step or two may be slowed by fresh memory
# Times the fastest step, after one round and later: memory touched for the first time made one take 2.6 times as long.
_FAR_BEHIND, _BEHIND = 4.0, 1.25


@dataclass(frozen=True)
class Choice:
    """One way to run a step."""

    precision: Precision
    memory_format: Layout


@dataclass(frozen=True)
class ProbeResult:
    """``seconds`` holds the measured steps of every way tried; ``best`` has the fastest step."""

    best: Choice
    seconds: dict[Choice, tuple[float, ...]]

    @property
    def step_seconds(self) -> float:
        """The median step of the best: what a training of many will take for each."""
        return statistics.median(self.seconds[self.best])

    def to_json(self) -> list[dict[str, Any]]:
        """One row for each way, fastest first."""
        rows = sorted(self.seconds.items(), key=lambda row: min(row[1]))
        return [
            {
                "precision": choice.precision,
                "memory_format": choice.memory_format,
                "fastest_step_seconds": min(seconds),
                "step_seconds": statistics.median(seconds),
                "steps": len(seconds),
            }
            for choice, seconds in rows
        ]


def candidates(
    precision: Literal["auto", "fp32", "bf16"],
    device: torch.device,
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto",
    *,
    model: nn.Module,
) -> tuple[Choice, ...]:
    """The ways worth trying: bf16 only where the hardware multiplies it, unless it was asked for.

    Raises TrainingError for a memory format in which ``model`` would learn from wrong gradients.
    """
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if _has_bf16(device) else ("fp32",)
    if precision != "auto":
        precisions = (precision,)
    layouts: tuple[Layout, ...] = ("contiguous",) if device.type == "mps" else ("channels_last", "contiguous")
    if memory_format != "auto":
        layouts = (memory_format,)
    if device.type == "cpu" and (layer := _wrong_in_channels_last(model)) is not None:
        layouts = tuple(layout for layout in layouts if layout != "channels_last")
        if not layouts:
            raise TrainingError(
                f"in channels_last PyTorch computes wrong gradients of {layer} on a CPU",
                fix="--set train.memory_format=contiguous",
            )
    return tuple(Choice(p, layout) for p in precisions for layout in layouts)


def _wrong_in_channels_last(model: nn.Module) -> str | None:
    """The first 1x1 convolution with a stride and fewer than 8 input channels, as RepVGG's stem has one.

    PyTorch 2.14's oneDNN (3.x, AVX2) writes beyond the buffer that it gathers such a layer's pixels in: measured here,
    gradients of the weight were 140 times too large with 6 channels, and with 3 the process died.
    """
    convolutions = [(str(name), layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    strided = [(name, layer) for name, layer in convolutions if layer.kernel_size == (1, 1) and max(layer.stride) > 1]
    return next((name for name, layer in strided if layer.in_channels // layer.groups < _GATHERED), None)


def probe(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    objective: Objective,
    choices: Sequence[Choice],
    *,
    rounds: int = MOST_ROUNDS,
    budget_seconds: float = 8.0,
) -> ProbeResult:
    """Time whole training steps of every choice on copies of ``model``; the model and torch's generators are untouched.

    Interleaved rounds of a step to warm up and one that counts, out of which choices drop that are far behind: right
    after another's, fp32 in channels_last was timed at 0.84 s where it takes 0.4. Several are measured in at least
    ``_LEAST_ROUNDS``, and in up to ``rounds`` while ``budget_seconds`` last; one alone while they last, at least once
    and at most ``_LEAST_ROUNDS`` times. A choice is judged by its fastest step: other work, and memory that is touched
    for the first time, only ever slow one down, and by as much as the choices differ. Raises TrainingError
    when no choice can run.
    """
    if not choices:
        raise TrainingError("there is no way to run a training step here", fix="set train.precision to fp32")
    devices = [torch.cuda.current_device()] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        steppers = {choice: _Stepper(model, images, targets, objective, choice) for choice in choices}
        start = time.perf_counter()
        seconds: dict[Choice, list[float]] = {choice: [] for choice in choices}
        for turn in range(rounds):
            over, alone = time.perf_counter() - start > budget_seconds, len(steppers) == 1
            if turn >= (1 if alone else _LEAST_ROUNDS) and (over or (alone and turn >= _LEAST_ROUNDS)):
                break
            for choice, stepper in steppers.items():
                if not alone or turn == 0:
                    stepper.step()  # not counted: the others left memory and caches as suits themselves
                seconds[choice].append(stepper.step())
            fastest = min(min(taken) for taken in seconds.values() if taken)
            limit = _FAR_BEHIND if turn == 0 else _BEHIND
            steppers = {one: it for one, it in steppers.items() if min(seconds[one]) <= limit * fastest}
    best = min(choices, key=lambda choice: min(seconds[choice]))
    return ProbeResult(best, {choice: tuple(values) for choice, values in seconds.items()})


@contextmanager
def running(choice: Choice, device: torch.device) -> Iterator[None]:
    """The autocast context of a choice."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=choice.precision == "bf16"):
        yield


class _Stepper:
    """A training step on a copy of the model, weights left where they are by a learning rate of zero."""

    def __init__(self, model: nn.Module, images: Tensor, targets: Tensor, objective: Objective, choice: Choice) -> None:
        layout = LAYOUTS[choice.memory_format]
        self.model = copy.deepcopy(model).to(memory_format=layout).train()
        self.images = images.to(memory_format=layout)
        self.targets = targets
        self.objective = objective
        self.choice = choice
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=0.0)

    def step(self) -> float:
        """Seconds of one step."""
        _wait(self.images.device)
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with running(self.choice, self.images.device):
            loss = self.objective(self.model, self.images, self.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        _wait(self.images.device)
        return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _has_bf16(device: torch.device) -> bool:
    return bool(torch.cuda.is_bf16_supported()) if device.type == "cuda" else device.type == "cpu" and has_bf16()
