"""Training checkpoints without pickle: one safetensors file, its record as JSON in the header, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeopt.files import write_atomically

LATER_ROUNDS = "round-*"  # folders in that of a training which went on in rounds, one each
_KEY = "edgeopt"


def save(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write ``tensors`` (moved to the CPU) and ``record``; a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Clones, because safetensors refuses tensors that share memory or are not contiguous.
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    header = {_KEY: json.dumps(dict(record), allow_nan=False)}
    write_atomically(path, lambda temporary: save_file(plain, temporary, metadata=header))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What :func:`save` wrote; None when there is nothing readable."""
    try:
        with safe_open(path, framework="pt") as stored:
            record = json.loads((stored.metadata() or {})[_KEY])
            return {name: stored.get_tensor(name) for name in stored.keys()}, record  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def clear(folder: Path) -> None:
    """Remove the checkpoints of a training, its later rounds' too, that is safely recorded elsewhere."""
    for part in (folder, *folder.glob(LATER_ROUNDS)):
        for name in ("last.safetensors", "best.safetensors"):  # the second is of versions that had two files
            (part / "checkpoints" / name).unlink(missing_ok=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, flat: ``<parameter index>.<name>``, numbers as ``<...>:<type>`` of one value.

    Some of timm's count steps in their groups: what is one there is ``group<index>.<name>``.
    """
    state = optimizer.state_dict()["state"]
    flat = {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}
    for index, group in enumerate(optimizer.param_groups):
        flat |= {f"group{index}.{name}": value for name, value in group.items() if name not in _OF_THE_LOOP}
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    for key, value in flat.items():
        if _is_number(value):
            tensors[f"{key}:{type(value).__name__}"] = torch.tensor(value, dtype=_TYPES[type(value).__name__][1])
    return tensors


_OF_THE_LOOP = ("lr", "initial_lr")
_TYPES: dict[str, tuple[Any, torch.dtype]] = {
    "bool": (bool, torch.bool), "int": (int, torch.int64), "float": (float, torch.float64),
}  # fmt: skip


def _is_number(value: object) -> bool:
    return type(value).__name__ in _TYPES


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave, in each parameter's own memory format and place."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, stored in tensors.items():
        index, _, name = key.partition(".")
        name, _, kind = name.partition(":")
        value: Any = _TYPES[kind][0](stored.item()) if kind else stored
        if index.startswith("group"):
            optimizer.param_groups[int(index.removeprefix("group"))][name] = value
            continue
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape and name != "step":
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        elif isinstance(value, Tensor) and name != "step":  # which AdamW keeps on the CPU
            value = value.to(parameter.device)
        optimizer.state[parameter][name] = value


def copy_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into the model's own, keeping their device and memory format; every name must be there."""
    with torch.no_grad():
        for name, own in model.state_dict().items():
            own.copy_(tensors[name])
