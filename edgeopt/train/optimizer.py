"""AdamW with layer-wise learning rates, and the schedule that scales them step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from edgeopt.errors import TrainingError

_PARAMETERS_PER_LAYER = 12  # timm's own grouping of models that do not say what their layers are


def make_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    extra_groups: Sequence[Mapping[str, Any]] = (),
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of ``model``.

    The learning rate of a layer is ``lr * layer_decay ** (layers between it and the head)`` (Bao et al. 2022,
    https://arxiv.org/abs/2106.08254). Norms, biases and quantizers are not decayed. ``extra_groups`` are parameter
    groups with their own ``lr`` (and no weight decay unless stated), taken out of the others. Every group carries its
    ``initial_lr`` for :func:`schedule`. Raises TrainingError when nothing is trainable.
    """
    own = {id(parameter) for group in extra_groups for parameter in group["params"]}
    scales = _layer_scales(model, layer_decay)
    quantizers = _quantizer_parameters(model)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in own:
            continue
        decayed = parameter.ndim > 1 and name not in quantizers
        scale = scales.get(name, 1.0)
        group = groups.setdefault(
            (scale, decayed), {"params": [], "lr": lr * scale, "weight_decay": weight_decay if decayed else 0.0}
        )
        group["params"].append(parameter)
    every: list[dict[str, Any]] = [*groups.values(), *({"weight_decay": 0.0, **group} for group in extra_groups)]
    if not every:
        raise TrainingError("the model has no trainable parameters", fix="do not freeze all of it")
    for group in every:
        group["initial_lr"] = group.get("lr", lr)
    return torch.optim.AdamW(every, lr=lr, weight_decay=weight_decay)


def schedule(step: int, *, steps: int, warmup_steps: int, min_ratio: float) -> float:
    """What the initial learning rate is multiplied by at ``step`` (from 0): linear warm-up, then half a cosine.

    The warm-up takes at most half of the steps. Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983.
    """
    warmup_steps = min(warmup_steps, steps // 2)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _quantizer_parameters(model: nn.Module) -> set[str]:
    """Names of parameters that hang in NNCF's hooks: ranges, which weight decay would shrink."""
    return {name for name, _ in model.named_parameters() if "__nncf_hooks" in name}


def _layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Parameter name -> learning rate over the head's, by depth."""
    if layer_decay == 1.0:
        return {}
    if hasattr(model, "group_matcher"):
        from timm.optim import param_groups_layer_decay

        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = param_groups_layer_decay(model, layer_decay=layer_decay)
        return {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    # Other models: their parameters in order, a dozen to a layer; the last linear layer is the head.
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    head = {name for name, _ in model.named_parameters() if linears and name.startswith(f"{linears[-1]}.")}
    trunk = [name for name, _ in model.named_parameters() if name not in head]
    layers = math.ceil(len(trunk) / _PARAMETERS_PER_LAYER)
    return {name: layer_decay ** (layers - index // _PARAMETERS_PER_LAYER) for index, name in enumerate(trunk)}
