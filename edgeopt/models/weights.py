"""Weights files: read without running anything, and fitted into a model or refused with the probable cause."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import ModelError

State = dict[str, Tensor]

_WRAPPERS = ("model_state_dict", "state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_PICKLE_FIX = (
    "load it where it was trained and save only its tensors: torch.save(model.state_dict(), 'weights.pth'), "
    "then give that file to --weights"
)


# --- reading a file -----------------------------------------------------------------------------------------------


def read_state(path: Path) -> State:
    """The tensors in ``path``: safetensors, or a torch file opened with ``weights_only=True``, on the CPU.

    A state dict inside ``{"state_dict" | "model" | "model_state_dict" | "net": ...}`` is taken out. Raises ModelError
    for a whole pickled module, TorchScript, anything else that is not named tensors, and for NaN or infinite values.
    """
    if not path.is_file():
        raise ModelError(
            f"no weights file at {path}", fix="check the path; in a run folder, make the variant again with --force"
        )
    state = _unwrap(_read_safetensors(path) if _is_safetensors(path) else _read_torch(path))
    if not state:
        raise ModelError(f"{path} holds no named tensors", fix=_PICKLE_FIX)
    bad = next((key for key, value in state.items() if not bool(torch.isfinite(value).all())), None)
    if bad is not None:
        raise ModelError(f"{path}: {bad} holds NaN or infinite numbers", fix="use a checkpoint from before it diverged")
    return state


def _is_safetensors(path: Path) -> bool:
    """Whether the file opens as safetensors does: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} is not a complete safetensors file: {error}", fix="copy or download it again"
        ) from None


def _read_torch(path: Path) -> Any:
    from safetensors import SafetensorError

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|TorchScript", str(error))
        what = f" ({found[1]})" if found and found[1] else ""
        raise ModelError(
            f"{path} holds Python objects{what}, not only tensors: a whole saved model runs code when it is opened",
            fix=_PICKLE_FIX,
        ) from None
    # SafetensorError: torch tries that format too, on a file that is none of its own.
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if "TorchScript" in str(error):
            raise ModelError(f"{path} is a TorchScript archive, not a state dict", fix=_PICKLE_FIX) from None
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ModelError(
            f"{path} is not a complete weights file: {line}",
            fix="copy or download it again; it must be .safetensors or what torch.save(model.state_dict(), ...) writes",
        ) from None


def _unwrap(content: Any) -> State:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        content = inner
    return {}


# --- putting a state into a model ---------------------------------------------------------------------------------


def fit_state(
    model: nn.Module, state: State, *, heads: Sequence[str], origin: str, model_name: str, keep_head: bool
) -> tuple[str, ...]:
    """Load ``state`` into ``model``; returns the classifier's keys that were left out.

    ``heads`` names the classifier modules. With ``keep_head`` every key must be there and fit; without, a classifier
    that is missing or has another number of classes keeps the model's own numbers. Raises ModelError that names the
    first keys that do not fit and the probable cause.
    """
    expected = model.state_dict()
    state = _stripped(state, expected)
    if _misfits(state, expected, heads):
        state = _filtered(state, model)
    head_keys = [key for key in expected if any(key.startswith(f"{head}.") for head in heads)]
    dropped: tuple[str, ...] = ()
    if not keep_head and any(key not in state or state[key].shape != expected[key].shape for key in head_keys):
        theirs = [key for key in state if any(key.startswith(f"{head}.") for head in heads)]
        dropped = tuple(key for key in dict.fromkeys([*head_keys, *theirs]) if key in theirs)  # in the model's order
        state = {key: value for key, value in state.items() if key not in dropped}
        state |= {key: expected[key] for key in head_keys}
    # Checkpoints older than PyTorch 0.4.1 have no counters; they play no part in inference.
    state |= {k: v for k, v in expected.items() if k.endswith("num_batches_tracked") and k not in state}
    _require_fit(state, expected, heads=heads, origin=origin, model_name=model_name)
    model.load_state_dict(state, strict=True)
    return dropped


def _stripped(state: State, expected: Mapping[str, Tensor]) -> State:
    """``state`` without the prefixes that wrappers (DataParallel, torch.compile, Lightning) put before every key."""
    state = {key: value for key, value in state.items() if key != "n_averaged"}
    while state and not any(key in expected for key in state):
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _misfits(state: State, expected: Mapping[str, Tensor], heads: Sequence[str]) -> bool:
    def outside_head(key: str) -> bool:
        return not any(key.startswith(f"{head}.") for head in heads)

    return any(
        outside_head(key) and (key not in expected or key not in state or state[key].shape != expected[key].shape)
        for key in {*state, *expected}
        if not key.endswith("num_batches_tracked")
    )


def _filtered(state: State, model: nn.Module) -> State:
    """``state`` through timm's own converter for this family (old key names, resized position embeddings), if any."""
    convert = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if convert is None or not type(model).__module__.startswith("timm."):
        return state
    try:
        converted = convert(dict(state), model)
    except (KeyError, RuntimeError, ValueError, IndexError, AttributeError, TypeError):
        return state  # not a checkpoint of this family: the comparison of keys that follows says so
    return {key: value for key, value in converted.items() if isinstance(value, Tensor)}


def _require_fit(
    state: State, expected: Mapping[str, Tensor], *, heads: Sequence[str], origin: str, model_name: str
) -> None:
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if not (missing or unexpected or shapes):
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} keys are missing ({_first(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} are not the model's ({_first(unexpected)})")
    if shapes:
        key = shapes[0]
        parts.append(
            f"{len(shapes)} have another shape ({key}: {_shape(state[key])} in the file, {_shape(expected[key])} here)"
        )
    in_head = [key for key in shapes if any(key.startswith(f"{head}.") for head in heads)]
    if shapes and shapes == in_head and not missing and not unexpected:
        classes = (state[shapes[0]].shape[0], expected[shapes[0]].shape[0])
        cause = f"it was trained for {classes[0]} classes, not {classes[1]}: use the folder it was trained on"
    elif (missing or unexpected) and len(missing) + len(shapes) > len(expected) // 2:
        cause = f"it is another architecture than {model_name}: check --model"
    else:
        cause = f"it is another variant of {model_name}, or its classifier was changed: check --model and its arguments"
    raise ModelError(f"{origin} does not fit {model_name}: {'; '.join(parts)}", fix=f"probably {cause}")


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"
