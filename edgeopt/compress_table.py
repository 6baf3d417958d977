"""The recipe's table ``[compress]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from edgeopt.errors import did_you_mean
from edgeopt.schemes import SCHEMES
from edgeopt.training_tables import Taught


def known_scheme(name: str) -> str:
    """``name``, or ValueError for one that does not exist."""
    if name not in SCHEMES:
        raise ValueError(f"unknown scheme {name!r}{did_you_mean(name, SCHEMES)}; use one of {', '.join(SCHEMES)}")
    return name


class CompressConfig(Taught):
    """Compression. ``prune`` is the fraction of the MACs removed; without ``teacher`` what is compressed teaches."""

    int8: bool = True
    prune: float | None = Field(None, gt=0, lt=1)
    schemes: tuple[str, ...] = ()
    calibration: str = "default"
    importance: Literal["taylor", "l2", "l1", "bn_scale"] = "taylor"
    epochs: int = Field(5, ge=0, le=10_000)  # of QAT
    recovery_epochs: int = Field(10, ge=0, le=10_000)  # after pruning
    lr: float = Field(1e-4, gt=0, le=10)
    recovery_lr: float = Field(1e-3, gt=0, le=10)
    scale_lr: float = Field(10.0, gt=0, le=1000)  # of the int8 scales: so many times lr, by which fraction a step moves
    batchnorm_epochs: float = Field(0.0, ge=0)  # of QAT, before BatchNorm's statistics are left alone; 0: always
    ema_decay: float = Field(0.99, ge=0, lt=1)  # in QAT: as train.ema_decay
    light_end: float = Field(0.0, ge=0, le=1)  # the last share of QAT's epochs, whole ones, with crops and flips alone
    ignore: tuple[str, ...] = ()  # modules that keep their channels and stay in float
    int8_outputs: bool | None = None  # of convolutions before swish and the like; None: where ONNX Runtime is a target

    @field_validator("schemes")
    @classmethod
    def _known_schemes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known_scheme(name) for name in value)
