"""Ctrl-C and SIGTERM while training: the first lets the step end and its state be saved, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interruption:
    """``requested`` once the user, or a machine that shuts down, wants training to stop."""

    requested: bool = False


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[Interruption]:
    """Signals only set the flag while the block runs; a second one raises KeyboardInterrupt.

    Python lets the main thread alone handle signals, so in another thread nothing changes.
    """
    state = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        if state.requested:
            raise KeyboardInterrupt
        state.requested = True
        say("stopping after this step; once more to stop at once")

    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield state
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
