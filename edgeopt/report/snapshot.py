"""``report.json`` read back: the fields that are promised, for comparisons and as the published JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from edgeopt import records
from edgeopt.errors import RunError
from edgeopt.files import read_json
from edgeopt.records.fields import Count, Hash, Key, Name, Pair, Points, PointsPair, Positive, Share, Shares, Text
from edgeopt.report.model import Report


class _Part(BaseModel):
    model_config = records.Record.model_config


class Row(_Part):
    """An engine. What was not measured is null; ``*_points`` are percentage points, ``*_ci`` 95 % intervals."""

    key: Key
    target: Name
    variant: Name
    backend: Text
    precision: Name
    scheme: Text | None
    machine: Text | None
    measured_on: Text | None
    top1: Share | None
    top1_ci: Shares | None
    simulated_top1: Share | None
    pictures: Count | None
    test_set: Text | None = None
    wrong: list[Count] | None = None
    drop_points: Points | None
    drop_ci_points: PointsPair | None
    agreement: Share | None
    p50_ms: Positive | None
    p50_ci_ms: Pair | None
    p90_ms: Positive | None
    p99_ms: Positive | None
    device_p50_ms: Positive | None = None
    throughput_ips: Positive | None
    speedup: Positive | None
    speedup_ci: Pair | None
    speedup_quiet: bool | None = None
    speedup_starts: Pair | None = None
    baseline: Key | None
    float_speedup: Positive | None = None
    float_speedup_ci: Pair | None = None
    float_speedup_quiet: bool | None = None
    float_speedup_starts: Pair | None = None
    float_baseline: Key | None = None
    fp32_speedup: Positive | None = None
    fp32_speedup_ci: Pair | None = None
    fp32_speedup_quiet: bool | None = None
    fp32_speedup_starts: Pair | None = None
    fp32_baseline: Key | None = None
    size_bytes: Count | None
    peak_memory_bytes: Count | None
    macs: Count | None
    params: Count | None
    int8_share: Share | None
    int8_share_macs: Share | None
    batch: Count | None
    threads: Count | None
    bench_starts: Count | None = None
    bench_seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None
    stable: bool | None
    verdict: Literal["met", "missed", "unstable", "undecided", "not judged"] | None
    flags: list[Text] = []


class Line(_Part):
    """A budget line judged for one engine."""

    engine: Key
    name: Text
    limit: float
    value: float | None
    bounds: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    status: Literal["met", "missed", "unstable", "undecided", "not judged"]
    message: Text


class Verdict(_Part):
    """The budget: its worst status, and the exit code of the command that judged it."""

    verdict: Literal["met", "missed", "unstable", "undecided", "not judged"] | None
    exit_code: Literal[0, 3, 4, 5]
    lines: list[Line]


class Source(_Part):
    """The run, and the dataset it was made of."""

    class Dataset(_Part):
        """Known by the fingerprint of its pictures and labels."""

        fingerprint: Hash

    name: Text
    id: Name
    created: Text
    dataset: Dataset


class ReportRecord(records.Record):
    """``report/report.json``; fields that are not listed may be there."""

    fix: ClassVar[str] = "make it again: edgeopt report"
    limit: ClassVar[int] = 64 * 2**20

    run: Source
    created: Text
    labels: list[Text]
    original: Row | None
    engines: list[Row]
    budget: Verdict
    environment: dict[Text, records.Machine]
    commands: list[Text]


@dataclass(frozen=True)
class Snapshot:
    """A report as it was: rows by key, and which pictures they were judged on."""

    name: str
    fingerprint: str
    labels: tuple[str, ...]
    rows: dict[str, Row]
    machines: dict[str, records.Machine]  # by the id of their kind

    def called(self, machine: str) -> str:
        """What the machine of an id is called."""
        found = self.machines.get(machine)
        return (found.cpu.name if found and found.cpu else None) or machine


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``report.json``, as published in ``edgeopt/report/report.schema.json``."""
    schema = ReportRecord.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "edgeopt report.json"}


def read_snapshot(path: Path) -> Snapshot:
    """A ``report.json``, or the run folder it would be made of; raises RunError for what is neither, or damaged."""
    if not path.exists():
        raise RunError(f"{path} does not exist", fix="give a run folder or its report/report.json")
    if path.is_dir():
        if not (path / "run.json").is_file():
            raise RunError(f"{path} is not a run folder", fix="give a run folder or its report/report.json")
        from edgeopt.report.table import assemble

        return snapshot(assemble(path))
    return _snapshot(read_json(path, limit=ReportRecord.limit), path)


def snapshot(report: Report) -> Snapshot:
    """A report that was just made."""
    return _snapshot(report.to_json(), Path(report.name) / "report" / "report.json")


def _snapshot(values: Mapping[str, Any], path: Path) -> Snapshot:
    if values.get("schema") == 1 and "engines" not in values:
        raise RunError(f"{path} is no report", fix="give a run folder or its report/report.json")
    records.check(ReportRecord, values, path)
    found = ReportRecord.model_validate(values)
    rows = {row.key: row for row in ((found.original,) if found.original else ()) + tuple(found.engines)}
    return Snapshot(
        name=found.run.name,
        fingerprint=found.run.dataset.fingerprint,
        labels=tuple(found.labels),
        rows=rows,
        machines=dict(found.environment),
    )
