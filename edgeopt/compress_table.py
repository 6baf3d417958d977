"""The recipe's table ``[compress]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from edgeopt.errors import did_you_mean
from edgeopt.latency_goal import latency_goal
from edgeopt.schemes import SCHEMES
from edgeopt.training_tables import Taught, Time

#: Keys that one might look for in ``[compress]``, and why they are not there.
OUT_OF_SCOPE = {
    "int4": "is out of scope: the runtimes here have no int4 convolutions, and weights that are unpacked first save "
    "size alone; int8, and prune for less of everything, make it faster too",
    "sparsity": "is out of scope, 2:4 as well: only the sparse tensor cores of GPUs skip such zeros; prune removes "
    "whole channels, which every runtime is faster without",
}


def known_scheme(name: str) -> str:
    """``name``, or ValueError for one that does not exist."""
    if name not in SCHEMES:
        raise ValueError(f"unknown scheme {name!r}{did_you_mean(name, SCHEMES)}; use one of {', '.join(SCHEMES)}")
    return name


class CompressConfig(Taught):
    """Compression. ``prune`` is the fraction of the MACs removed, ``latency`` what is pruned until (4ms, 0.6x).

    Without ``teacher`` what is compressed teaches.
    """

    int8: bool = True  # unless fp16 or bf16 is stated
    fp16: bool = False  # no int8 and no training for it: `build` makes float engines of what is pruned, or as it is
    bf16: bool = False
    prune: float | None = Field(None, gt=0, lt=1)
    prune_steps: int = Field(1, ge=1, le=100)  # each with a recovery of its share of the epochs
    drop_blocks: int = Field(0, ge=0, le=1000)  # whole residual blocks, before channels are pruned
    drop_heads: int = Field(0, ge=0, le=10_000)  # of transformers' attention, before channels are pruned
    latency: str | None = None  # of the int8 engine, measured on the one target
    latency_candidates: bool = False  # export networks for a target elsewhere to time, and do nothing else
    timing_seconds: float = Field(60.0, gt=0, le=36_000)  # for timing its candidates, all together
    rival: bool = True  # beside latency: the unpruned model at a smaller input of equal latency
    schemes: tuple[str, ...] = ()
    calibration: str = "default"
    importance: Literal["taylor", "l2", "l1", "bn_scale"] = "taylor"
    layer_cap: float = Field(0.7, gt=0, lt=1)  # the most of its channels that a layer may lose
    round_to: int | None = Field(None, ge=1, le=128)  # widths that are left are multiples of it; None: the targets' own
    reconstruct: bool = True  # after channels are cut: layers fitted anew, by least squares, to what they gave before
    epochs: int = Field(5, ge=0, le=10_000)  # of QAT
    recovery_epochs: int = Field(20, ge=0, le=10_000)  # after pruning, a round
    recovery_rounds: int = Field(3, ge=1, le=100)  # at most: another follows while val shows that the last one helped
    lr: float = Field(1e-4, gt=0, le=10)
    recovery_lr: float = Field(1e-3, gt=0, le=10)
    match_weight: float = Field(1.0, ge=0, le=1000)  # in recovery: of layers' maps, to be those of the whole network
    scale_lr: float = Field(10.0, gt=0, le=1000)  # of the int8 scales: so many times lr, by which fraction a step moves
    batchnorm_epochs: float = Field(0.0, ge=0)  # of QAT, before BatchNorm's statistics are left alone; 0: always
    ema_decay: float = Field(0.99, ge=0, lt=1)  # in QAT: as train.ema_decay
    light_end: float = Field(0.0, ge=0, le=1)  # the last share of QAT's epochs, whole ones, with crops and flips alone
    ignore: tuple[str, ...] = ()  # modules that keep their channels and stay in float
    int8_outputs: bool | None = None  # of convolutions before swish and the like; None: where ONNX Runtime is a target
    max_drop: float | None = Field(None, ge=0, le=100)  # points of val top-1; then the ladder is climbed
    time: Time | None = None  # of the call, after which no climb goes on; None: when no rung is left
    trials: int | None = Field(None, ge=1, le=100)  # its rungs

    @field_validator("schemes")
    @classmethod
    def _known_schemes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known_scheme(name) for name in value)

    @model_validator(mode="before")
    @classmethod
    def _half_is_no_int8(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and (values.get("fp16") or values.get("bf16")):
            return {"int8": False, **values}
        return values

    @property
    def half(self) -> tuple[str, ...]:
        """The precisions of 16 bits that engines are wanted in."""
        return tuple(name for name in ("fp16", "bf16") if getattr(self, name))

    @property
    def prunes(self) -> bool:
        """Whether channels, blocks or heads are removed by number."""
        return self.prune is not None or self.drop_blocks > 0 or self.drop_heads > 0

    @field_validator("latency")
    @classmethod
    def _readable_latency(cls, value: str | None) -> str | None:
        if value is not None:
            latency_goal(value)
        return value

    @model_validator(mode="after")
    def _goals_that_go_together(self) -> CompressConfig:
        if self.int8 and self.half:
            raise ValueError(f"{self.half[0]} is in place of int8; leave one out (build has float engines beside int8)")
        if self.latency is not None and self.prunes:
            key = "prune" if self.prune is not None else "drop_blocks" if self.drop_blocks else "drop_heads"
            raise ValueError(f"{key} and latency both say how much to prune; leave one of them out")
        if self.latency_candidates and (self.prunes or self.latency is not None or self.max_drop is not None):
            raise ValueError("latency_candidates is what a device times first; prune, latency and max_drop come later")
        if self.latency_candidates and not self.int8:
            raise ValueError("latency_candidates are int8 networks; add int8")
        if self.prune_steps > 1 and self.prune is None:
            raise ValueError("prune_steps divide a prune that is not there; add prune")
        if self.latency is not None and not self.int8:
            raise ValueError("latency is that of an int8 engine; add int8")
        if self.max_drop is None and (self.time is not None or self.trials is not None):
            raise ValueError("time and trials bound the ladder of max_drop, which is not set")
        if self.max_drop is not None and not self.int8:
            raise ValueError("max_drop chooses among ways to int8, and int8 is off")
        return self
