"""Several runs in one table, engine by engine: what ``edgeopt report runs/*`` prints and writes as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.errors import EdgeoptError, MissingStageError
from edgeopt.files import write_text
from edgeopt.report import format as form
from edgeopt.report.page import asset, fragment
from edgeopt.report.snapshot import Row, Snapshot, read_snapshot

_HEAD = ("run", "engine", "top-1", "change", "p50 ms", "against", "faster", "× its float", "size", "in int8")


@dataclass(frozen=True)
class RunsTable:
    """Reports side by side; ``left_out`` says why others were not read, ``warnings`` what does not compare."""

    snapshots: tuple[Snapshot, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before comparing rows."""
        said = []
        if len({(one.fingerprint, one.labels) for one in self.snapshots}) > 1:
            said.append("the runs are of different datasets: their accuracies do not compare")
        machines = {row.measured_on for one in self.snapshots for row in one.rows.values() if row.measured_on}
        if len(machines) > 1:
            said.append(f"measured on {len(machines)} different machines: their milliseconds do not compare")
        elif len(self.snapshots) > 1:
            said.append("timed in sessions of their own: compare ratios rather than milliseconds")
        return tuple(said)

    @property
    def rows(self) -> list[tuple[Snapshot, Row]]:
        """Every engine of every run."""
        return [(one, row) for one in self.snapshots for row in one.rows.values()]

    def text(self) -> str:
        """For a terminal."""
        lines = [_HEAD, *(_cells(one, row) for one, row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        notes = [f"warning: {text}" for text in self.warnings]
        notes += [f"left out: {name} ({why})" for name, why in self.left_out.items()]
        return "\n".join([*table, *([""] if notes else []), *notes])

    def to_json(self) -> dict[str, Any]:
        """As ``edgeopt report RUN... --json`` prints it."""
        rows = [{"run": one.name, "dataset": one.fingerprint, **row.model_dump(mode="json")} for one, row in self.rows]
        return {"runs": rows, "warnings": list(self.warnings), "left_out": self.left_out}

    def write(self, path: Path) -> None:
        """A page that sorts by any column and asks nothing of the network."""
        style, script = asset("style.css"), asset("script.js")
        write_text(path, fragment("runs", table=self, style=style, script=script))


def read_runs(paths: Sequence[Path]) -> RunsTable:
    """The reports of run folders, or ``report.json`` files; what is neither is left out with the reason.

    Raises MissingStageError when nothing is left.
    """
    found, left_out = [], {}
    for path in paths:
        try:
            found.append(read_snapshot(path))
        except EdgeoptError as error:
            left_out[str(path)] = error.message
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3])
        raise MissingStageError(f"there is no report to compare ({reasons})", fix="edgeopt bench --run FOLDER")
    return RunsTable(tuple(found), left_out)


def _cells(one: Snapshot, row: Row) -> tuple[str, ...]:
    return (
        one.name,
        row.key,
        form.percent(row.top1),
        form.points(row.drop_points),
        form.ms(row.p50_ms),
        row.baseline or form.DASH,
        form.times(row.speedup),
        form.times(row.float_speedup),
        form.mib(row.size_bytes),
        form.percent(row.int8_share, 0) if row.precision == "int8" else form.DASH,
    )
