"""The learning rate by a range test: it rises step by step on a copy of the model until the loss does."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import TrainingError
from edgeopt.train.config import LoopConfig
from edgeopt.train.freezing import Freezing
from edgeopt.train.objectives import Objective
from edgeopt.train.optimizer import make_optimizer

LOWEST, HIGHEST = 1e-6, 1.0
STEPS = 72  # a dozen for every tenfold
_MEMORY = 0.9  # of the loss's moving average
_BLOWN_UP = 3.0  # times the lowest loss: what follows tells nothing
_MARGIN = 10.0


@dataclass(frozen=True)
class LrRange:
    """``lr`` is a tenth of the rate at which the smoothed loss was lowest; the curve has a point for every step."""

    lr: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """As it is kept beside the model."""
        rule = f"a {_MARGIN:g}th of the rate with the lowest smoothed loss"
        return {"schema": 1, "lr": self.lr, "rule": rule, **{k: list(getattr(self, k)) for k in _CURVES}}


_CURVES = ("rates", "losses", "smoothed")


def find_lr(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    objective: Objective,
    config: LoopConfig,
    *,
    device: torch.device | None = None,
    steps: int = STEPS,
) -> LrRange:
    """Try rates from 1e-6 to 1, one a batch, with the optimizer of ``config``.

    The model and torch's generator are left as they were. Smith 2017, https://arxiv.org/abs/1506.01186. Raises
    TrainingError when the loss falls nowhere.
    """
    device = device or torch.device("cpu")
    trial = copy.deepcopy(model).to(device).train()
    optimizer = make_optimizer(trial, config, lr=1.0)
    Freezing(trial, config, steps_per_epoch=1).apply(config.epochs)  # as most of the training is, or all of it
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        for step, (images, targets) in zip(range(steps), batches, strict=False):
            torch.manual_seed(config.seed * 1_000_003 + step)
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1))
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
            optimizer.zero_grad(set_to_none=True)
            placed = images.to(device, memory_format=torch.contiguous_format)  # right for every layer: see the probe
            loss = objective(trial, placed, targets.to(device))
            value = float(loss.detach())
            if not math.isfinite(value):
                break
            average = _MEMORY * average + (1 - _MEMORY) * value
            rates.append(rate)
            losses.append(value)
            smoothed.append(average / (1 - _MEMORY ** (step + 1)))
            if smoothed[-1] > _BLOWN_UP * min(smoothed):
                break
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trial.parameters(), config.clip_grad or math.inf)
            optimizer.step()
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__, default=0)
    if lowest == 0:
        raise TrainingError(
            "the range test found no learning rate at which the loss falls", fix="state lr, as --lr 0.001"
        )
    return LrRange(rates[lowest] / _MARGIN, tuple(rates), tuple(losses), tuple(smoothed))
