"""The recipe's table ``[tune]``: how long a hyperparameter search may take, and over which values it searches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from edgeopt.training_tables import Seed, Strict, seconds_of

_TRIALS = 20


class TuneConfig(Strict):
    """A hyperparameter search. Each trial trains for ``train.epochs``, unless it is pruned.

    ``trials`` counts those of the whole study, over all calls and processes; ``time`` bounds one call, in seconds or as
    ``"90s"``, ``"30m"``, ``"1h30m"``; None: no bound. ``space`` says which keys of the recipe vary: a list of values
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
        return seconds_of(value) if isinstance(value, str) else value
