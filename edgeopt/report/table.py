"""Reads a run's records into a Report: only what was measured, nothing recomputed, nothing guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt import records
from edgeopt.errors import MissingStageError, RunError
from edgeopt.metrics import ratio_interval
from edgeopt.report import format as form
from edgeopt.report.changes import changes
from edgeopt.report.engine_row import EngineRow
from edgeopt.report.latencies import latencies, rivals
from edgeopt.report.mistakes import mistakes
from edgeopt.report.model import Report
from edgeopt.report.notes import BUSY, STARTS_DIFFER, UNSETTLED
from edgeopt.report.rows import Record, engine_row, read_optional
from edgeopt.report.trainings import trainings
from edgeopt.run import Run, now
from edgeopt.run.folder import STALE

ORIGINAL_TARGET = "pytorch"
#: Differences of accuracy between the simulated and the deployed int8 model that are worth a warning, in points.
SIMULATION_GAP_POINTS = 1.0


def assemble(run_path: Path) -> Report:
    """The report of a run, no budget judged; RunError for damaged records, MissingStageError when there are none."""
    run = Run.open(run_path)
    rows, machines, measured_by = _rows(run)
    original, engines = _split(rows, run)
    if not rows:
        raise MissingStageError(f"{run_path} has no engine to report on", fix="edgeopt build --target onnxruntime")
    labels = _labels(run)
    if original is not None:
        original = replace(original, mistakes=mistakes(run, original, labels))
    engines = tuple(
        replace(row, mistakes=mistakes(run, row, labels), changes=changes(run, row, original, labels))
        if row.compressed
        else row
        for row in engines
    )
    return Report(
        name=run.name,
        run={"name": run.name, "id": run.info["id"], "created": run.info["created"], "dataset": _dataset(run)},
        labels=labels,
        original=original,
        engines=engines,
        machines=machines,
        commands=_commands(run, measured_by),
        created=now(),
        trainings=trainings(run),
        cuts={name: one["pruning"] for name, one in run.variants().items() if (one.get("pruning") or {}).get("widths")},
        ladders={name: one["ladder"] for name, one in run.variants().items() if one.get("ladder")},
        latencies=latencies(run),
        rivals=rivals(run),
    )


def _rows(run: Run) -> tuple[list[EngineRow], dict[str, Record], list[str]]:
    """Every engine folder with a record, in the order they were built; the machines and the commands that measured."""
    judged: list[Record] = []
    timed: list[Record] = []
    built, damaged = run.engines(), run.damaged_engines()
    labels = _labels(run)
    measured = {
        "/".join(path.parent.parts[-2:])
        for name in ("latency", "accuracy")
        for path in run.path.glob(f"device/*/*/{name}.json")
    }
    variants = run.variants()
    rows: list[EngineRow] = []
    failures: dict[str, Any] = {}
    commands: dict[str, str] = {}
    for key in [*built, *sorted(damaged), *sorted(measured - {*built, *damaged})]:
        folder = run.path / "device" / key
        build = built.get(key, {})
        latency = read_optional(folder / "latency.json", records.LatencyRecord)
        accuracy = read_optional(folder / "accuracy.json", records.AccuracyRecord)
        if accuracy and labels and len(accuracy["labels"]) != len(labels):
            raise RunError(
                f"{folder / 'accuracy.json'} is of {len(accuracy['labels'])} classes, the run has {len(labels)}",
                fix=records.AccuracyRecord.fix,
            )
        judged.append(accuracy)
        timed.append(latency)
        # What failed left no record of its own: those measured beside it name it.
        bench = latency.get("bench") or {}
        failures.update(bench.get("failures") or {})
        if str(bench.get("command")).startswith("edgeopt "):  # not the name of a program that used it as a library
            commands[str(bench.get("created"))] = str(bench["command"])
        figures = variants.get(str(build.get("variant")), {}).get("metrics") or {}
        stale = run.stale(str(build.get("variant")))
        row = engine_row(folder, key, build, {} if stale else latency, {} if stale else accuracy, figures)
        if stale:
            row = replace(row, reason=STALE)
        rows.append(replace(row, reason=damaged[key].message, elsewhere=True) if key in damaged else row)
    machines = _machines([*judged, *timed])
    return [_with_failure(row, failures) for row in rows], machines, [commands[when] for when in sorted(commands)]


def _machines(measured: Sequence[Record]) -> dict[str, Record]:
    """By id, as the last of ``measured`` found it: how it was while engines were timed, if that comes last."""
    found = {}
    for record in measured:
        machine = record.get("measured_on")
        if machine and machine.get("machine_id"):
            found[str(machine["machine_id"])] = _with_after(machine, record.get("measured_on_after"))
    return found


def _with_after(machine: Record, after: Record | None) -> Record:
    """The machine, with what may have changed while it measured."""
    names = ("frequency_mhz", "temperature_c", "throttled", "load_1m", "gpus")
    known = {name: after[name] for name in names if after and after.get(name) not in (None, "", [])}
    changed = {name: value for name, value in known.items() if value != machine.get(name)}
    return {**machine, "after": changed} if changed else machine


def _with_failure(row: EngineRow, failures: Record) -> EngineRow:
    failed = failures.get(row.key)
    return replace(row, reason=f"could not be timed: {failed}") if failed and row.p50_ms is None else row


def _pruning_flags(row: EngineRow, rows: list[EngineRow]) -> tuple[str, ...]:
    """Fewer multiply-accumulates are no gain by themselves: say so where they did not make the engine faster."""
    flags = []
    for other in rows:
        alike = (other.target, other.precision, other.bench_id) == (row.target, row.precision, row.bench_id)
        if not (alike and row.bench_id and row.macs and other.macs and other.macs > 1.01 * row.macs):
            continue
        ratio = ratio_interval(other.window_medians_ms, row.window_medians_ms, starts=row.windows_by_start)
        if not ratio.low > 1:
            flags.append(f"not shown to be faster than {other.key}, which has more MACs")
    return tuple(flags)


def _split(rows: list[EngineRow], run: Run) -> tuple[EngineRow | None, tuple[EngineRow, ...]]:
    """The original's row and the others'; int8 in torch is no engine, but the ``simulated_top1`` of those it became."""
    torch_rows = {row.variant: row for row in rows if row.target == ORIGINAL_TARGET}
    try:
        name: str | None = run.original()
    except MissingStageError:
        name = None
    original = torch_rows.get(name) if name else None
    if original is not None:
        original = replace(original, flags=_flags(original))
    engines = []
    for row in rows:
        if row.target != ORIGINAL_TARGET:
            simulated = torch_rows.get(row.variant) if row.precision == "int8" else None
            row = replace(
                row,
                simulated_top1=simulated.top1 if simulated else None,
                comparable=name is None or run.root_of(row.variant) == name,
            )
            engines.append(replace(row, flags=_flags(row) + _pruning_flags(row, rows)))
    return original, tuple(engines)


def _flags(row: EngineRow) -> tuple[str, ...]:
    """What must be said beside the numbers."""
    flags = []
    if not row.comparable:
        flags.append("of another trained model than the original of this table")
    if row.stable is False:
        busy = row.other_load_cores is not None and row.other_load_cores > 0.25
        flags.append(BUSY if busy else UNSETTLED)
    if row.speedup_starts is not None:
        flags.append(f"{STARTS_DIFFER}: {form.times_range(row.speedup_starts)}")
    if row.cross_check and row.cross_check.get("agrees") is not True:  # over 5 %, which noise may have made or not
        noisy = "" if row.cross_check.get("agrees") is False else ", too noisy to tell whether it agrees"
        own, other = (form.ms(row.cross_check[name]) for name in ("edgeopt_p50_ms", "p50_ms"))
        flags.append(f"{row.cross_check['tool']} measured {other} ms beside edgeopt’s {own}{noisy}")
    if row.fits_target is False:
        flags.append("measured on another machine than its target describes")
    if row.precision == "int8" and row.float_speedup is not None:
        low, high = row.float_speedup_ci or (0.0, float("inf"))
        if high < 1:
            flags.append(f"slower than {row.float_baseline}")
        elif low <= 1:
            flags.append(f"not shown to be faster than {row.float_baseline}")
    if row.precision == "int8" and row.int8_share is not None and row.int8_share < 1:
        left = (row.compute_layers or 0) - (row.int8_layers or 0)
        flags.append(f"{left} compute layer{'s' if left != 1 else ''} stayed in float")
    if row.top1 is not None and row.simulated_top1 is not None:
        gap = 100 * (row.simulated_top1 - row.top1)
        if gap > SIMULATION_GAP_POINTS:
            flags.append(f"{gap:.1f} points less accurate than it was trained to be")
    return tuple(flags)


def _dataset(run: Run) -> dict[str, Any]:
    """Pictures, classes and splits, from ``split.json``; the device may have no copy of it."""
    record = read_optional(run.data / "split.json", records.SplitRecord)
    splits: dict[str, int] = {}
    for item in record.get("items") or ():
        splits[str(item[3])] = splits.get(str(item[3]), 0) + 1
    return {
        "root": run.info.get("data_root"),
        "fingerprint": run.info["fingerprint"],
        "classes": len(record.get("classes") or ()) or None,
        "pictures": sum(splits.values()) or None,
        "splits": splits,
    }


def _labels(run: Run) -> tuple[str, ...]:
    path = run.data / "labels.txt"
    return records.read_labels(path) if path.is_file() else ()


def _commands(run: Run, measured_by: list[str]) -> tuple[str, ...]:
    """The commands the records name, in order, each once."""
    records = [*run.variants().values(), *run.engines().values()]
    records.sort(key=lambda record: str(record.get("created", "")))
    made = [str(record["command"]) for record in records if record.get("command")]
    return tuple(dict.fromkeys([*made, *measured_by]))
