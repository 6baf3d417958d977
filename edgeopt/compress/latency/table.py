"""Times of a network that was not built: a monotone table of each layer's channels, and one constant a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeopt.compress.space import Float64

#: Least engines held out, and the share of all, to tell how far predictions are off.
HELD_OUT = 0.25


@dataclass(frozen=True)
class Timed:
    """One engine that was measured.

    ``shares`` (layers, 2) of inputs and outputs left; ``whole``: its latency over the unpruned engine's, interleaved;
    ``layers``: the part of it that each layer takes, by the runtime's profiler, empty where it has none.
    """

    shares: Float64
    whole: float
    layers: Mapping[str, float]


@dataclass(frozen=True)
class TableError:
    """How far predictions were off on ``engines`` that the table was not made from, as shares of what was measured."""

    engines: int
    median: float
    largest: float


@dataclass(frozen=True)
class LatencyTable:
    """Predicts a network's latency as a share of the unpruned engine's.

    A layer of input share i and output share o takes a + b i + c o + d i o with no coefficient below zero, so that it
    never gets faster by growing: a table over both widths with a line between its points. What is no compute layer
    (additions, pooling, activations kept apart) goes by the mean output share. ``coefficients`` (layers + 1, 4).
    """

    coefficients: Float64
    constant: float

    def predict(self, shares: Float64) -> float:
        """The latency of the network with these shares (layers, 2) of inputs and outputs left, in unpruned ones."""
        return float((_terms(shares) * self.coefficients).sum()) + self.constant


def fit_table(engines: Sequence[Timed], layers: Sequence[str], macs: Mapping[str, int]) -> LatencyTable:
    """The table of what was measured. Where a runtime has no profiler the layers' parts go by their MACs."""
    parts = np.array([_parts(engine, layers, macs) for engine in engines])  # (engines, layers + 1)
    terms = np.array([_terms(engine.shares) for engine in engines])  # (engines, layers + 1, 4)
    coefficients = np.array([_monotone(terms[:, index], parts[:, index]) for index in range(parts.shape[1])])
    missing = [engine.whole - float((one * coefficients).sum()) for engine, one in zip(engines, terms, strict=True)]
    return LatencyTable(coefficients, float(np.median(missing)))


def held_out_error(engines: Sequence[Timed], layers: Sequence[str], macs: Mapping[str, int]) -> TableError:
    """Every fourth engine, or the last of fewer, is predicted by a table of the others; there are two at least."""
    every = min(round(1 / HELD_OUT), len(engines))
    kept = [engine for index, engine in enumerate(engines) if index % every != every - 1]
    held = [engine for index, engine in enumerate(engines) if index % every == every - 1]
    table = fit_table(kept, layers, macs)
    errors = [abs(table.predict(engine.shares) / engine.whole - 1) for engine in held]
    return TableError(len(held), float(np.median(errors)), max(errors))


def _parts(engine: Timed, layers: Sequence[str], macs: Mapping[str, int]) -> list[float]:
    """The part of the engine's latency that each layer takes, and what is left over for all else."""
    if not engine.layers:
        work = [macs[name] * float(pair.prod()) for name, pair in zip(layers, engine.shares, strict=True)]
        return [engine.whole * one / sum(work) for one in work] + [0.0]
    parts = [engine.layers.get(name, 0.0) for name in layers]
    return [*parts, max(0.0, engine.whole - sum(parts))]


def _terms(shares: Float64) -> Float64:
    """(layers + 1, 4): 1, i, o and i o of each layer; the last row stands for all that is no layer."""
    rest = np.array([[1.0, float(shares[:, 1].mean())]])
    both = np.vstack([shares, rest])
    inputs, outputs = both[:, 0], both[:, 1]
    inputs[-1] = 0.0
    return np.stack([np.ones_like(inputs), inputs, outputs, inputs * outputs], axis=1)


def _monotone(terms: Float64, times: Float64) -> Float64:
    """Least squares with coefficients of at least zero."""
    from sklearn.linear_model import LinearRegression

    found: Float64 = LinearRegression(positive=True, fit_intercept=False).fit(terms, times).coef_
    return found
