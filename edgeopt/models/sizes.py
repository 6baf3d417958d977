"""Which picture sizes a model takes: tried, as pooling, windows and position embeddings each have rules of theirs."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from edgeopt.errors import ModelError
from edgeopt.models.architecture import Architecture, ImageSize
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


def nearest_size(architecture: Architecture) -> ImageSize | None:
    """The size in pixels nearest to the architecture's that it takes: sides of multiples of 32, or the native one.

    Of squares where that one is square, else of all shapes, as (height, width).
    """
    if architecture.source == "attr":
        return None  # building it runs code of the user's
    wanted, native = architecture.input_size[1:], native_size(architecture)
    sides = range(_STEP, 2 * max(*wanted, *native), _STEP)
    square = wanted[0] == wanted[1]
    candidates = {native, *((side, side) for side in sides)} | set(() if square else product(sides, sides))
    for size in sorted(candidates - {wanted}, key=lambda size: _distance(size, wanted))[:_TRIES]:
        if _takes(architecture, size):
            return size[0] if size[0] == size[1] else size
    return None


def _distance(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, ...]:
    """What sizes are sorted by: how far both sides are off, the smaller ones first."""
    return (abs(size[0] - wanted[0]) + abs(size[1] - wanted[1]), *size)


def _takes(architecture: Architecture, size: tuple[int, int]) -> bool:
    """Whether the model, made for pictures of that size, takes one."""
    channels = architecture.input_size[0]
    try:
        stated = {**architecture.arguments, **size_arguments(architecture.source, architecture.name, size)}
        resized = architecture.model_copy(update={"arguments": stated, "input_size": (channels, *size)})
        with torch.no_grad():
            on_meta(resized)(torch.zeros(1, channels, *size, device="meta"))
    except _MISFITS:
        return False
    return True


def _wrong_size(architecture: Architecture, error: Exception) -> ModelError:
    line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    (channels, height, width), size = architecture.input_size, nearest_size(architecture)
    return ModelError(
        f"{architecture.full_name} cannot take pictures of {height}x{width} pixels, {channels} channels: {line}",
        fix=f"--image-size {'x'.join(map(str, size)) if isinstance(size, tuple) else size}"
        if size
        else "leave --image-size out, or correct the model's code or arguments",
    )
