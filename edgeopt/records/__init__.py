"""What every record in a run folder must hold: one schema a kind, checked once, when the record is read.

A run folder may come from a stranger, so that nothing in a record is taken on trust: numbers have bounds, names fit a
folder, paths stay inside the run. Fields that are not listed here may be there and are not read. Code that got its
record from :func:`read` may index what is required and need not look at types again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from edgeopt.errors import RunError
from edgeopt.files import is_plain, read_json, read_text
from edgeopt.records.engines import (
    BuildRecord,
    CandidatesRecord,
    CandidateTimes,
    ExportRecord,
    FusionRecord,
    LayerTimesRecord,
)
from edgeopt.records.fields import Record
from edgeopt.records.measured import AccuracyRecord, GradCamRecord, LatencyRecord, Machine
from edgeopt.records.pictures import SetRecord, SplitRecord
from edgeopt.records.stages import (
    CommitRecord,
    EnsembleRecord,
    LatencyVerdict,
    LogLine,
    LrRangeRecord,
    OutOfFoldRecord,
    Output,
    RunInfo,
    StageRecord,
)

__all__ = [
    "COMMITS", "OLDER_SCHEMAS", "SCHEMA", "AccuracyRecord", "BuildRecord", "CandidateTimes",
    "CandidatesRecord", "CommitRecord", "EnsembleRecord", "ExportRecord", "FusionRecord", "GradCamRecord",
    "LatencyRecord", "LatencyVerdict", "LayerTimesRecord", "LogLine", "LrRangeRecord", "Machine",
    "OutOfFoldRecord", "Output", "Record", "RunInfo", "SetRecord", "SplitRecord", "StageRecord", "check",
    "read", "read_labels",
]  # fmt: skip

SCHEMA = 1
#: The edgeopt that reads each schema older than :data:`SCHEMA`; none was ever released.
OLDER_SCHEMAS: Mapping[int, str] = {}

#: What a stage's commit record must hold, by the record's file name.
COMMITS: Mapping[str, type[CommitRecord]] = {
    "stage.json": StageRecord,
    "ensemble.json": EnsembleRecord,
    "parity.json": ExportRecord,
    "build.json": BuildRecord,
    "verdict.json": LatencyVerdict,
    "candidates.json": CandidatesRecord,
    "times.json": CandidateTimes,
}


def read(kind: type[Record] | type[FusionRecord], path: Path) -> dict[str, Any]:
    """The record in ``path``, as it is there; raises RunError, in one line, when it is not of its ``kind``."""
    values = read_json(path, limit=kind.limit)
    check(kind, values, path)
    return values


def check(kind: type[Record] | type[FusionRecord], values: Mapping[str, Any], path: Path) -> None:
    """Raise RunError, in one line, when ``values`` is no record of its ``kind``; ``path`` is where it was read."""
    if "schema_" in kind.model_fields:
        _check_schema(values.get("schema"), path)
    try:
        kind.model_validate(values)
    except ValidationError as error:
        raise RunError(f"{path} is damaged: {_first(error)}", fix=kind.fix) from None


def read_labels(path: Path) -> tuple[str, ...]:
    """The class names in ``labels.txt``, in the order of the logits; raises RunError."""
    names = tuple(read_text(path).removesuffix("\n").split("\n"))
    odd = next((name for name in names if not is_plain(name)), None)
    if odd is not None:
        raise RunError(f"{path} is damaged: {odd[:60]!r} is no class name", fix=Record.fix)
    return names


def _check_schema(found: Any, path: Path) -> None:
    if found == SCHEMA and type(found) is int:
        return
    shown = repr(found)[:40]
    if type(found) is int and found > SCHEMA:
        raise RunError(
            f"{path} has schema {shown}; this edgeopt reads schema {SCHEMA}", fix="pip install --upgrade edgeopt"
        )
    if type(found) is int and found in OLDER_SCHEMAS:
        raise RunError(
            f"{path} has schema {shown}, of an older edgeopt", fix=f'pip install "edgeopt{OLDER_SCHEMAS[found]}"'
        )
    if found is None:
        raise RunError(f"{path} is damaged: it states no schema", fix=Record.fix)
    raise RunError(f"{path} has schema {shown}, which no edgeopt ever wrote", fix=Record.fix)


def _first(error: ValidationError) -> str:
    """The first problem, with what was found; texts as Python writes them, so that no control character is printed."""
    found = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in found["loc"])[:100]
    message = found["msg"].removeprefix("Value error, ")
    shown = "" if found["type"] == "missing" or isinstance(found["input"], (dict, list, BaseModel)) else found["input"]
    got = f", got {shown!r:.60}" if shown != "" else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place!r}: {message[:1].lower()}{message[1:200]}{got}{more}" if place else f"{message[:200]}{more}"
