"""The fusion audit: what a runtime says it executed, as a FusionReport over every compute layer."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median

from edgeopt.backends.base import FusionReport, LayerTime, LayerTimes

#: What runtimes add to the name of a node that they fuse or move.
_SUFFIX = re.compile(r"(/WithoutBiases|_token_\d+|_quant|_nchwc)+$")
#: Calls of an engine by which its layers are timed, after one that is not counted.
TIMED_RUNS = 30


@dataclass(frozen=True)
class ComputeLayer:
    """One executed convolution, gemm or matmul. ``macs`` of one picture; None where a shape is unknown."""

    name: str
    int8: bool
    macs: int | None = None


def fusion_report(backend: str, layers: Iterable[ComputeLayer], source: str) -> FusionReport:
    """The report over ``layers``; the share of MACs is None when a single layer's MACs are unknown."""
    layers = list(layers)
    macs = [layer.macs for layer in layers]
    share, left = None, None
    total = sum(count or 0 for count in macs)
    if total and None not in macs:
        share = sum(layer.macs or 0 for layer in layers if layer.int8) / total
        left = tuple((layer.macs or 0) / total for layer in layers if not layer.int8)
    return FusionReport(
        backend=backend,
        compute_layers=len(layers),
        int8_layers=sum(layer.int8 for layer in layers),
        float_layers=tuple(layer.name for layer in layers if not layer.int8),
        source=source,
        int8_share_macs=share,
        float_shares_macs=left,
    )


def layer_of(name: str, known: Container[str]) -> str | None:
    """The one of the ``known`` layers that a runtime calls ``name``: fused ones bear several names, and suffixes."""
    return next((one for part in name.split(",") if (one := _SUFFIX.sub("", part)) in known), None)


def layer_times(samples: Iterable[tuple[str, str, float]], *, runs: int, batch: int, source: str) -> LayerTimes:
    """From (layer, kind, milliseconds) of every run: medians, slowest first."""
    found: dict[tuple[str, str], list[float]] = {}
    for name, kind, ms in samples:
        found.setdefault((name, kind), []).append(ms)
    layers = [LayerTime(name, kind, round(median(values), 6)) for (name, kind), values in found.items()]
    return LayerTimes(tuple(sorted(layers, key=lambda layer: -layer.ms)), runs, batch, source)


def conv_macs(output: Sequence[int], weight: Sequence[int]) -> int:
    """Multiply-accumulates of a convolution: output elements times the weights behind one of them.

    ``weight`` is (out, in / groups, *kernel), or with groups split off (groups, out / groups, in / groups, *kernel)
    when it has one dimension more than ``output``, which may be channels-first or channels-last.
    """
    skip = 1 + (len(weight) > len(output))
    return prod(output) * prod(weight[skip:])


def matmul_macs(output: Sequence[int], first: Sequence[int]) -> int:
    """Multiply-accumulates of a matrix product whose left operand, not transposed, has the shape ``first``."""
    return prod(output) * (first[-1] if first else 1)
