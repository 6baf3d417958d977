"""Which picture sizes a model takes: tried, as pooling, windows and position embeddings each have rules of theirs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeopt.errors import ModelError
from edgeopt.models.architecture import Architecture
from edgeopt.models.builders import build, native_size, size_arguments

_STEP, _TRIES = 32, 12
#: What constructors and forward methods raise for sizes that do not fit.
_MISFITS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError, ModelError)


def require_classifier(model: nn.Module, architecture: Architecture) -> None:
    """Run one black picture of the architecture's size; ``model`` comes back in its mode.

    Raises ModelError where it fails, with the nearest size that works, or gives anything but logits (1, classes).
    """
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, *architecture.input_size))
    except _MISFITS as error:
        raise _wrong_size(architecture, error) from error
    finally:
        model.train(was_training)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, architecture.num_classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"{architecture.full_name} gives {shape} for one picture, not logits (1, {architecture.num_classes})",
            fix="return one tensor of logits; edgeopt is for single-label classification"
            if architecture.source == "attr"
            else "leave out of model.arguments what changes its output",
        )


def on_meta(architecture: Architecture) -> nn.Module:
    """The bare model with shapes in place of numbers, in evaluation mode."""
    with torch.device("meta"):
        return build(architecture).eval()


def nearest_size(architecture: Architecture) -> int | None:
    """The side in pixels nearest to the architecture's, among multiples of 32 and the native one, that it takes."""
    if architecture.source == "attr":
        return None  # building it runs code of the user's
    wanted, native = architecture.input_size[-1], native_size(architecture)[0]
    candidates: set[int] = {*range(_STEP, 2 * max(wanted, native), _STEP), native} - {wanted}
    for size in sorted(candidates, key=lambda side: (abs(side - wanted), side))[:_TRIES]:
        stated = {**architecture.arguments, **size_arguments(architecture.source, architecture.name, size)}
        resized = architecture.model_copy(update={"arguments": stated, "input_size": (3, size, size)})
        try:
            with torch.no_grad():
                on_meta(resized)(torch.zeros(1, architecture.input_size[0], size, size, device="meta"))
        except _MISFITS:
            continue
        return size
    return None


def _wrong_size(architecture: Architecture, error: Exception) -> ModelError:
    line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    size = nearest_size(architecture)
    return ModelError(
        f"{architecture.full_name} cannot take pictures of {architecture.input_size[-1]} px: {line}",
        fix=f"--image-size {size}" if size else "leave --image-size out, or correct the model's code or arguments",
    )
