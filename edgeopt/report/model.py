"""What a report is made of: engines measured against the original, read from a run's records and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from edgeopt.report.engine_row import EngineRow, Pair, plain


@dataclass(frozen=True)
class LrTest:
    """The range test: ``curve`` holds (learning rate, smoothed loss), ``lr`` is the rate that was taken."""

    lr: float
    curve: tuple[Pair, ...]


@dataclass(frozen=True)
class Training:
    """How a variant was trained: (epoch from 1, mean train loss, val top-1 0-1) of each epoch; ``damaged`` says why
    there is nothing to show."""

    variant: str
    epochs: tuple[tuple[float, float, float], ...] = ()
    best_epoch: int | None = None
    lr_test: LrTest | None = None
    damaged: str = ""


#: What a line's figures are, by how its name ends. A drop counts what was lost: a gain is below zero.
_UNITS = {
    "_points": " points lost",
    "_speedup": "×",
    "_speed": "×",
    "_ms": " ms",
    "_ips": " pictures/s",
    "_mib": " MiB",
    "_size": "×",
}


@dataclass(frozen=True)
class BudgetLine:
    """One budget line judged for one engine. ``status``: met, missed, unstable, undecided or not judged."""

    engine: str
    name: str
    limit: float
    value: float | None
    bounds: Pair | None
    status: str
    message: str

    @classmethod
    def of(
        cls, engine: str, name: str, limit: float, value: float | None, bounds: Pair | None, status: str, why: str = "",
        *, note: str = "",
    ) -> BudgetLine:  # fmt: skip
        """The line with its message; ``note`` follows the figures, ``why`` a semicolon."""
        unit = next((unit for suffix, unit in _UNITS.items() if name.partition(".")[0].endswith(suffix)), "")
        shown = f"{value or 0.0:.4g}{unit}"
        if bounds is not None and bounds[0] != bounds[1]:
            shown += f" ({bounds[0]:.4g} to {bounds[1]:.4g})"
        found = f"measured {shown}" if value is not None else "not measured"
        message = f"{engine}: {name} = {limit:g} is {status}, {found}{note}" + (f"; {why}" if why else "")
        return cls(engine, name, limit, value, bounds, status, message)

    def to_json(self) -> dict[str, Any]:
        """An entry of ``report.json``'s ``budget.lines``."""
        return {one.name: plain(getattr(self, one.name)) for one in fields(self)}


@dataclass(frozen=True)
class Report:
    """A run's report: the original, the engines, the budget's lines, the machines and how to do it again."""

    name: str
    run: Mapping[str, Any]  # id, created, dataset: pictures, classes, splits
    labels: tuple[str, ...]
    original: EngineRow | None
    engines: tuple[EngineRow, ...]
    machines: Mapping[str, Mapping[str, Any]]  # by machine id: what environment.record() said there
    commands: tuple[str, ...]
    created: str
    budget: tuple[BudgetLine, ...] = ()
    allow_undecided: bool = False
    warnings: tuple[str, ...] = ()  # of a comparison with an earlier report
    trainings: tuple[Training, ...] = ()  # shown on the page; log.jsonl has them
    cuts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by pruned variant: ``pruning`` of its record
    ladders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by variant: as in its record
    latencies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by pruned variant: search and verdicts
    rivals: frozenset[str] = frozenset()  # variants of the unpruned model at the smaller input that pruning must beat

    @property
    def rows(self) -> tuple[EngineRow, ...]:
        """The original, when it was measured, and every engine."""
        return ((self.original,) if self.original else ()) + self.engines

    def row(self, key: str | None) -> EngineRow | None:
        """The row called ``key``."""
        return next((row for row in self.rows if row.key == key), None)

    def to_json(self) -> dict[str, Any]:
        """``report.json``."""
        from edgeopt.report.budget import exit_code, verdict

        return {
            "schema": 1,
            "run": dict(self.run),
            "created": self.created,
            "labels": list(self.labels),
            "original": self.original.to_json() if self.original else None,
            "engines": [row.to_json() for row in self.engines],
            "budget": {
                "verdict": verdict(self.budget),
                "exit_code": exit_code(self.budget, allow_undecided=self.allow_undecided),
                "allow_undecided": self.allow_undecided,
                "lines": [line.to_json() for line in self.budget],
            },
            "ladders": {variant: dict(ladder) for variant, ladder in self.ladders.items()},
            "latencies": {variant: dict(latency) for variant, latency in self.latencies.items()},
            "environment": {key: dict(machine) for key, machine in self.machines.items()},
            "warnings": list(self.warnings),
            "commands": list(self.commands),
        }
