"""The latency that `compress --latency` asks for: milliseconds, or a share of what the unpruned int8 engine takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MILLISECONDS = re.compile(r"(\d+(?:\.\d+)?)\s?ms")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s?(x|%)")


@dataclass(frozen=True)
class LatencyGoal:
    """Either ``ms``, the median of one call at the target's batch, or ``share`` of the unpruned int8 engine's (0-1)."""

    ms: float | None = None
    share: float | None = None

    @property
    def label(self) -> str:
        """As a part of a variant's name: ``4ms``, ``60pct``."""
        return f"{self.ms:g}ms" if self.ms is not None else f"{100 * (self.share or 0):g}pct"

    def limit_of(self, present_ms: float) -> float:
        """The share of ``present_ms`` that may remain; 1 and more where nothing has to go."""
        return self.share if self.share is not None else (self.ms or 0.0) / present_ms


def latency_goal(text: str) -> LatencyGoal:
    """``4ms``, ``0.6x`` and ``60%`` as a goal; ValueError for anything else."""
    if found := _MILLISECONDS.fullmatch(text.strip()):
        ms = float(found[1])
        if 0 < ms <= 3_600_000:
            return LatencyGoal(ms=ms)
    elif found := _SHARE.fullmatch(text.strip()):
        share = float(found[1]) / (100 if found[2] == "%" else 1)
        if 0 < share < 1:
            return LatencyGoal(share=share)
    raise ValueError("a latency is milliseconds such as 4ms, or a share of the unpruned int8 engine's: 0.6x, 60%")
