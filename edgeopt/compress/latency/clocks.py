"""Who tells how long candidates take: this machine, which builds and times them, or a device that did so before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from edgeopt.bench import EngineSpec
from edgeopt.bench.bed import UNPRUNED, Bed, Share, Timing
from edgeopt.compress.latency.slices import Slicer
from edgeopt.compress.prune import History, history_of
from edgeopt.compress.space import Cuts, WidthSpace
from edgeopt.console import NotedProgress
from edgeopt.errors import ModelError
from edgeopt.preprocess import PreprocessSpec

CANDIDATES = 24
_LEAST_SECONDS = 3.0  # for two engines: fewer windows give no interval


@dataclass(frozen=True)
class Candidate:
    """A network to time: what is cut, or the whole one at a smaller input ``spec``."""

    history: History
    cuts: Cuts | None = None
    spec: PreprocessSpec | None = None


def candidates_of(space: WidthSpace, sizes: Sequence[PreprocessSpec]) -> dict[str, Candidate]:
    """About two dozen widths, the whole network first and called ``UNPRUNED``, and the inputs of ``sizes``."""
    survey = space.survey(CANDIDATES)
    names = [UNPRUNED, *(f"candidate-{index}" for index in range(1, len(survey)))]
    inputs = {f"size-{'x'.join(map(str, spec.size))}": spec for spec in sizes}
    return candidates_from(space, dict(zip(names, survey, strict=True)), inputs)


def candidates_from(
    space: WidthSpace, cuts: Mapping[str, Cuts], sizes: Mapping[str, PreprocessSpec]
) -> dict[str, Candidate]:
    """Candidates of these cuts and inputs, by name."""
    return {name: Candidate(history_of(space.plan(one)), cuts=one) for name, one in cuts.items()} | {
        name: Candidate([], spec=spec) for name, spec in sizes.items()
    }


def shape_of(space: WidthSpace) -> list[tuple[str, int]]:
    """What cuts refer to: each group's name and its number of units."""
    return [(group.name, len(group.scores)) for group in space.groups]


class Clock(Protocol):
    """Latencies of candidates as shares of the unpruned int8 engine's."""

    measures: ClassVar[bool]  # whether plans can be measured whole

    def survey(
        self, space: WidthSpace, sizes: Sequence[PreprocessSpec], progress: NotedProgress | None
    ) -> tuple[dict[str, Candidate], dict[str, Timing]]:
        """The candidates and their timings, by name."""

    def whole(self, space: WidthSpace, name: str, history: History) -> Timing | None:
        """The engine of one plan against the unpruned one; None where it cannot be measured now."""

    def again(self, name: str) -> Share | None:
        """The plan ``name``, that was measured whole, as the verdict in the end will measure it; None as before."""


@dataclass
class Here:
    """This machine: engines are built in ``bed`` from slices. ``seconds`` are for timing all candidates together."""

    measures: ClassVar[bool] = True

    bed: Bed
    slicer: Slicer
    seconds: float
    _built: dict[str, EngineSpec] = field(default_factory=dict)

    def survey(
        self, space: WidthSpace, sizes: Sequence[PreprocessSpec], progress: NotedProgress | None
    ) -> tuple[dict[str, Candidate], dict[str, Timing]]:
        """As :class:`Clock`."""
        candidates = candidates_of(space, sizes)
        for name, candidate in candidates.items():
            self._build(name, candidate.history, candidate.spec)
        widths = [name for name, candidate in candidates.items() if candidate.spec is None]
        return candidates, self.bed.timings(
            self._built, self.seconds, layers=space.layers, profiled=widths, progress=progress
        )

    def whole(self, space: WidthSpace, name: str, history: History) -> Timing | None:
        """As :class:`Clock`."""
        engines = {UNPRUNED: self._built[UNPRUNED], name: self._build(name, history)}
        seconds = max(_LEAST_SECONDS, self.seconds / 8)
        return self.bed.timings(engines, seconds, layers=space.layers, profiled=[name])[name]

    def again(self, name: str) -> Share | None:
        """As :class:`Clock`."""
        return Share.of(self.bed.judge([self._built[UNPRUNED], self._built[name]], self.seconds), name)

    def _build(self, name: str, history: History, spec: PreprocessSpec | None = None) -> EngineSpec:
        path = self.bed.folder / f"{name}.onnx"
        self.slicer.write(history, path, spec.input_shape if spec else None)
        self._built[name] = self.bed.build(name, path, spec)
        return self._built[name]


@dataclass(frozen=True)
class Elsewhere:
    """A device that timed candidates of these ``cuts`` and the inputs of ``sizes`` and cannot be asked for more."""

    measures: ClassVar[bool] = False

    groups: Sequence[tuple[str, int]]
    layers: tuple[str, ...]
    cuts: Mapping[str, Cuts]
    sizes: Mapping[str, PreprocessSpec]
    timings: Mapping[str, Timing]

    def survey(
        self, space: WidthSpace, sizes: Sequence[PreprocessSpec], progress: NotedProgress | None
    ) -> tuple[dict[str, Candidate], dict[str, Timing]]:
        """As :class:`Clock`; ``sizes`` are those that were exported then. ModelError for another network's space."""
        if not self._are_of(space):
            raise ModelError(
                "the candidates that were timed are of a network that can be cut in other ways",
                fix="export and measure them again: edgeopt compress --int8 --latency-candidates --force",
            )
        return candidates_from(space, self.cuts, self.sizes), dict(self.timings)

    def whole(self, space: WidthSpace, name: str, history: History) -> Timing | None:
        """Nothing: that would take another journey."""
        return None

    def again(self, name: str) -> Share | None:
        """Nothing either."""
        return None

    def _are_of(self, space: WidthSpace) -> bool:
        sound = (list(self.groups), self.layers) == (shape_of(space), space.layers)
        sound = sound and {*self.cuts, *self.sizes} == set(self.timings) and self.cuts.get(UNPRUNED) == space.full
        return sound and all(
            len(cuts) == len(space.groups)
            and all(0 <= units <= group.most for units, group in zip(cuts, space.groups, strict=True))
            for cuts in self.cuts.values()
        )
