"""Optimizers with layer-wise learning rates, and the schedules that scale them step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from edgeopt.errors import ConfigError, TrainingError, did_you_mean
from edgeopt.train.config import LoopConfig
from edgeopt.train.freezing import depths
from edgeopt.training_tables import Schedule


def make_optimizer(
    model: nn.Module, config: LoopConfig, *, lr: float | None = None, extra_groups: Sequence[Mapping[str, Any]] = ()
) -> torch.optim.Optimizer:
    """``config.optimizer`` over the trainable parameters of ``model``: ``adamw``, or another name of timm's.

    The learning rate of a layer is ``lr * layer_decay ** (layers between it and the head)`` (Bao et al. 2022,
    https://arxiv.org/abs/2106.08254), ``lr`` that of ``config`` unless given. Norms, biases and quantizers are not
    decayed. ``extra_groups`` are parameter groups with their own ``lr`` (and no weight decay unless stated), taken out
    of the others. Every group carries its ``initial_lr`` for :func:`schedule`. Raises TrainingError when nothing is
    trainable, ConfigError for unknown names.
    """
    lr = config.lr if lr is None else lr
    own = {id(parameter) for group in extra_groups for parameter in group["params"]}
    scales = _layer_scales(model, config.layer_decay)
    quantizers = _quantizer_parameters(model)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in own:
            continue
        decayed = parameter.ndim > 1 and name not in quantizers
        scale = scales.get(name, 1.0)
        group = groups.setdefault(
            (scale, decayed), {"params": [], "lr": lr * scale, "weight_decay": config.weight_decay if decayed else 0.0}
        )
        group["params"].append(parameter)
    every: list[dict[str, Any]] = [*groups.values(), *({"weight_decay": 0.0, **group} for group in extra_groups)]
    if not every:
        raise TrainingError("the model has no trainable parameters", fix="do not freeze all of it")
    for group in every:
        group["initial_lr"] = group.get("lr", lr)
    if config.optimizer == "adamw":
        # On a CPU one fused pass over a tensor takes a third of the time of AdamW's eight; GPUs have their own default.
        fused = all(parameter.device.type == "cpu" for group in every for parameter in group["params"])
        return torch.optim.AdamW(every, lr=lr, weight_decay=config.weight_decay, fused=fused or None)
    from timm.optim import create_optimizer_v2

    require_known_optimizer(config.optimizer)
    momentum = 0.9 if config.momentum is None else config.momentum
    made: torch.optim.Optimizer = create_optimizer_v2(
        every, opt=config.optimizer, lr=lr, weight_decay=config.weight_decay, momentum=momentum
    )
    return made


def require_known_optimizer(name: str) -> None:
    """Raises ConfigError, with a suggestion, for a name that is none of timm's, or of one that cannot be used here."""
    if name == "adamw":
        return
    from timm.optim import list_optimizers

    known = [known for known in list_optimizers() if not known.startswith(_ELSEWHERE) and known not in _UNUSABLE]
    if name not in known:
        raise ConfigError(
            f'unknown optimizer "{name}"{did_you_mean(name, known)}',
            fix="use adamw, adam, sgd, momentum, rmsprop, or another of timm.optim.list_optimizers()",
        )


#: Those of packages for GPUs that edgeopt does not install.
_ELSEWHERE = ("bnb", "fused")
#: They need a graph of gradients, or keep what a checkpoint does not hold: a generator.
_UNUSABLE = frozenset({"adahessian", "kron", "kronc", "kronw"})


def schedule(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    min_ratio: float,
    kind: Schedule = "cosine",
    steps_per_epoch: int = 1,
    decay: float | None = None,
    step_epochs: float | None = None,
    drops: int = 0,
) -> float:
    """What the initial learning rate is multiplied by at ``step`` (from 0): linear warm-up, then as ``kind`` says.

    ``cosine``: half a cosine down to ``min_ratio`` (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983).
    ``one_cycle``: the warm-up is half a cosine up from 1/25 and takes 30 % of the steps or more, then half a cosine
    down to ``min_ratio`` (Smith & Topin 2018, https://arxiv.org/abs/1708.07120, with a constant momentum). ``step``:
    times ``decay`` (0.1) every ``step_epochs`` (a third of all) since the start. ``exponential``: times ``decay`` an
    epoch, or down to ``min_ratio`` at the end. ``plateau``: times ``decay`` (0.1) for each of ``drops``, which the loop
    counts. The warm-up takes at most half of the steps.
    """
    if kind == "one_cycle":
        warmup_steps = max(warmup_steps, round(_ONE_CYCLE_RISE * steps))
    warmup_steps = min(warmup_steps, steps // 2)
    if step < warmup_steps:
        risen = (step + 1) / (warmup_steps + 1)
        return risen if kind != "one_cycle" else 1 - (1 - _ONE_CYCLE_START) * _half_cosine(risen)
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    if kind == "step":
        length = steps / 3 if step_epochs is None else step_epochs * steps_per_epoch
        return float((decay or _DROP) ** math.floor(step / length + 1e-9))
    if kind == "exponential":
        return float(min_ratio**done if decay is None else decay ** ((step - warmup_steps) / steps_per_epoch))
    if kind == "plateau":
        return float((decay or _DROP) ** drops)
    return min_ratio + (1 - min_ratio) * _half_cosine(done)


_ONE_CYCLE_RISE, _ONE_CYCLE_START = 0.3, 1 / 25
_DROP = 0.1


def _half_cosine(done: float) -> float:
    """From 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))


def _quantizer_parameters(model: nn.Module) -> set[str]:
    """Names of parameters that hang in NNCF's hooks: ranges, which weight decay would shrink."""
    return {name for name, _ in model.named_parameters() if "__nncf_hooks" in name}


def _layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Parameter name -> learning rate over the head's, by depth."""
    if layer_decay == 1.0:
        return {}
    return {name: layer_decay**depth for name, depth in depths(model).items()}
