"""Running out of memory: how it shows, and how what was taken is given back before the next try."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgeopt.errors import TrainingError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine had no memory left; PyTorch's CPU allocator says so in words only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def release() -> None:
    """Give back what a failed step held. Call it outside the except block, whose traceback keeps tensors alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_told(doing: str, *, fix: str) -> Iterator[None]:
    """Running out of memory in the block, where nothing smaller is left to try, is a TrainingError with this fix."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["no memory is left"])[0]
        raise TrainingError(f"{doing} ran out of memory ({reason})", fix=fix) from None
