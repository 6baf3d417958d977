"""The recipe's table ``[tune]``: how long a hyperparameter search may take, and over which values it searches."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from edgeopt.training_tables import Seed, Strict

_TRIALS = 20
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class TuneConfig(Strict):
    """A hyperparameter search. Each trial trains for ``train.epochs``, unless it is pruned.

    ``trials`` counts those of the whole study, over all calls and processes; ``time`` bounds one call, in seconds or as
    ``"90s"``, ``"30m"``, ``"2h"``, and None does not. ``space`` says which keys of the recipe vary: a list of values,
    or ``{low, high, log, step}``; empty: those of :func:`edgeopt.tuning.defaults.default_space`.
    """

    trials: int | None = Field(None, ge=1, le=100_000)  # None: 20, or as many as there is time for
    time: Annotated[float, Field(gt=0, le=10**8)] | None = None
    workers: int = Field(1, ge=1, le=256)  # processes
    pruner: Literal["median", "halving", "hyperband", "none"] = "median"
    seed: Seed = 0
    space: dict[str, Any] = Field(default_factory=dict)

    @property
    def most(self) -> int | None:
        """How many trials there may be; None for any number."""
        return self.trials or (None if self.time else _TRIALS)

    @field_validator("time", mode="before")
    @classmethod
    def _in_seconds(cls, value: Any) -> Any:
        if isinstance(value, str):
            found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?) ?([smhd]?)", value.strip())
            if not found:
                raise ValueError('must be seconds, or a text such as "90s", "30m" or "2h"')
            return float(found[1]) * _UNITS[found[2] or "s"]
        return value
