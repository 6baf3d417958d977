"""Running out of memory: how it shows, and how what was taken is given back before the next try."""

from __future__ import annotations

import gc

import torch

from edgeopt.errors import TrainingError


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU or the machine had no memory left; PyTorch's CPU allocator says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release() -> None:
    """Give back what a failed step held. Call it outside the except block, whose traceback keeps tensors alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: RuntimeError) -> TrainingError:
    """What to say when nothing smaller is left to try."""
    return TrainingError(
        f"training ran out of memory ({str(error).splitlines()[0]})",
        fix="lower --image-size, take a smaller model, or lower train.batch_size",
    )
