"""Every error edgeopt raises on purpose.

EdgeoptError                 base; a user error: one line saying what is wrong, one saying what fixes it (exit 1)
├── ConfigError              a recipe, target, calibration recipe or flag is wrong; lists every problem at once
├── DataError                the pictures or labels cannot be used as they are
├── ModelError               a model cannot be created, loaded, traced, pruned or quantized
├── TrainingError            training cannot go on (non-finite loss, out of memory)
│   └── ProcessError         one process of several cannot go on: for a reason of its own, or because another ended
├── RunError                 the run folder is missing, damaged, of another schema, or unsafe
│   └── MissingStageError    a stage that this verb needs has not been made; the fix is the command that makes it
├── BackendError             a runtime refused a model, or an engine does not fit this machine
│   └── MissingBackendError  the runtime is not installed here; the fix is the install command
├── RemoteError              another machine cannot be reached over ssh, has no edgeopt, or its edgeopt says no
├── LoweringError            the ONNX that was written is not what its scheme promises
├── ParityError              an export or an engine does not answer as the model it was made from
├── BudgetMissedError        a budget is missed (exit 3)
├── UnstableError            a budget needs a measurement that is too unstable (exit 4)
└── UndecidedError           too few pictures or too little time to judge a budget (exit 5)
"""

from __future__ import annotations

import errno
import os
from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: The fix for what only a bug, or a model or runtime this version does not know, can bring about.
REPORT = "please report it, with what `edgeopt doctor --json` prints"


class EdgeoptError(Exception):
    """Base of the tree. ``message`` says what is wrong and where, ``fix`` what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.others: tuple[EdgeoptError, ...] = ()  # what else went wrong: only one error can be raised

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


class ConfigError(EdgeoptError):
    """A recipe, target, calibration recipe or flag is wrong."""


class DataError(EdgeoptError):
    """The pictures or labels cannot be used as they are."""


class ModelError(EdgeoptError):
    """A model cannot be created, loaded, traced, pruned or quantized."""


class TrainingError(EdgeoptError):
    """Training cannot go on."""


class ProcessError(TrainingError):
    """One process of several cannot go on: for a reason of its ``own``, or because another ended, which says why."""

    def __init__(self, message: str, *, fix: str | None = None, own: bool = False) -> None:
        super().__init__(message, fix=fix)
        self.own = own


class RunError(EdgeoptError):
    """The run folder is missing, damaged, of another schema, or unsafe."""


class MissingStageError(RunError):
    """A stage that this verb needs has not been made."""


class BackendError(EdgeoptError):
    """A runtime refused a model, or an engine does not fit this machine."""


class MissingBackendError(BackendError):
    """The runtime is not installed here."""


class RemoteError(EdgeoptError):
    """Another machine cannot be reached over ssh, has no edgeopt, or its edgeopt says no."""


class LoweringError(EdgeoptError):
    """The ONNX that was written is not what its scheme promises."""


class ParityError(EdgeoptError):
    """An export or an engine does not answer as the model it was made from."""


class BudgetMissedError(EdgeoptError):
    """A budget is missed."""

    exit_code = 3


class UnstableError(EdgeoptError):
    """A budget needs a measurement that is too unstable."""

    exit_code = 4


class UndecidedError(EdgeoptError):
    """Too few pictures or too little time to judge a budget."""

    exit_code = 5


def raise_first(failed: Sequence[EdgeoptError]) -> None:
    """Raise the first of ``failed``, if any, with the others in it: only one can be raised, and none is lost."""
    if failed:
        failed[0].others = (*failed[0].others, *failed[1:])
        raise failed[0]


def disk_trouble(error: BaseException | None) -> str:
    """What is wrong with the disk when that is what made ``error``; empty when it is something else.

    Libraries written in C++ and Rust say so in their own exceptions, so their words are looked at too.
    """
    numbers = {errno.ENOSPC: "full", errno.EDQUOT: "full (quota)", errno.EFBIG: "full (file size limit)"}
    numbers[errno.EROFS] = "read-only"
    for _ in range(10):
        if error is None:
            return ""
        number = error.errno if isinstance(error, OSError) else None
        state = numbers.get(number or 0) or next(
            (state for number, state in numbers.items() if os.strerror(number) in str(error)), ""
        )
        if state:
            where = getattr(error, "filename", None)
            return f"the disk is {state}" + (f": cannot write {where}" if where else "")
        error = error.__cause__ or error.__context__
    return ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``' (did you mean "x"?)'`` when something known is close to ``name``, else an empty string."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""
