"""A model asked once, in evaluation mode or with hooks, and left as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in evaluation mode while the block runs; every module gets its own mode back, frozen ones too."""
    training = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in training.items():
            module.training = mode


class _Handle(Protocol):
    def remove(self) -> None: ...


@contextmanager
def hooked(handles: Iterable[_Handle]) -> Iterator[None]:
    """Hooks that are there while the block runs: their ``handles``, as registering them gave, are removed after it."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
