"""Any timm or torchvision model as a line of ``edgeopt models``: counted without weights, int8 guessed by layers."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import nn

from edgeopt.errors import ModelError, did_you_mean
from edgeopt.model_table import Difficulty, ModelRow, known_models, matching
from edgeopt.models.builders import describe, split_name, torchvision_names
from edgeopt.models.macs import count_macs, count_parameters
from edgeopt.models.pretrained import cached_weights
from edgeopt.models.sizes import on_meta

_GATES = ("squeezeexcit", "semodule")


def find_models(pattern: str) -> tuple[list[ModelRow], list[str]]:
    """(curated rows, other names) that ``pattern`` means: one model's name, else part of names with * and ? in it.

    Curated rows are found by their family too. Raises ModelError, with the nearest name, when there is none.
    """
    names = _names()
    curated = matching(pattern)
    known = {row.name for row in known_models()}
    wanted = pattern.removeprefix("timm:")
    if wanted in names or wanted.split(".")[0] in names:  # timm's names may carry the tag of their weights
        return [row for row in curated if row.name == wanted], [] if wanted in known else [wanted]
    glob = wanted.lower() if set("*?[") & set(wanted) else f"*{wanted.lower()}*"
    others = [name for name in names if fnmatchcase(name.lower(), glob) and name not in known]
    if not curated and not others:
        raise ModelError(
            f'no model is called "{pattern}"{did_you_mean(pattern, names)}',
            fix="give a part of its name, as in: edgeopt models 'mobilenet*'",
        )
    return curated, others


def _names() -> list[str]:
    import timm

    return [*timm.list_models(), *(f"torchvision:{name}" for name in torchvision_names())]


def rows(names: list[str]) -> Iterator[ModelRow]:
    """A row for each name, made on torch's meta device: no memory, no weights, no arithmetic."""
    for name in names:
        yield _row(name)


def _row(name: str) -> ModelRow:
    source, bare = split_name(name)
    architecture = describe(source, bare, {"num_classes": 1000}, None)
    model = on_meta(architecture)
    difficulty, note = difficulty_of(model)
    return ModelRow(
        name=name,
        family=type(model).__name__,
        parameters_millions=round(count_parameters(model) / 1e6, 1),
        macs_millions=round(count_macs(model, architecture.input_size) / 1e6),
        input_size=architecture.input_size[-1],
        int8=difficulty,
        note=note,
        cached=cached_weights(architecture) is not None,
    )


def difficulty_of(model: nn.Module) -> tuple[Difficulty, str]:
    """How hard int8 is to be expected for the layers of ``model``, and which of them make it so."""
    kinds = {type(module).__name__.lower() for module in model.modules()}
    found: list[tuple[Difficulty, str]] = []
    if any("attention" in kind or kind.endswith("attn") for kind in kinds):
        found.append(("hard", "attention: softmax and products of activations"))
    if any("layernorm" in kind for kind in kinds):
        found.append(("fair", "LayerNorm stays in float"))
    gated = any(gate in kind for kind in kinds for gate in _GATES)
    for kind, name in (("silu", "swish"), ("swish", "swish"), ("hardswish", "hard-swish")):
        if kind in kinds:
            found.append(("hard" if gated else "fair", f"{name}: wide activation ranges"))
            break
    if gated:
        found.append(("fair", "squeeze-and-excitation"))
    if any(isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 for module in model.modules()):
        found.append(("fair", "depthwise weights of uneven range"))
    worst: Difficulty = "hard" if any(level == "hard" for level, _ in found) else "fair" if found else "easy"
    return worst, "; ".join(note for _, note in found) or "plain layers"
