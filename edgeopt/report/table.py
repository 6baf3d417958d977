"""Reads a run's records into a Report: only what was measured, nothing recomputed, nothing guessed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeopt import records
from edgeopt.config import Budget, validate
from edgeopt.errors import MissingStageError, RunError
from edgeopt.metrics import confusion_matrix, ratio_interval
from edgeopt.report import format as form
from edgeopt.report.changes import changes
from edgeopt.report.latencies import latencies
from edgeopt.report.mistakes import mistakes
from edgeopt.report.model import EngineRow, Pair, Report
from edgeopt.report.trainings import trainings
from edgeopt.run import Run, now

Record = Mapping[str, Any]
T = TypeVar("T")

ORIGINAL_TARGET = "pytorch"
#: Differences of accuracy between the simulated and the deployed int8 model that are worth a warning, in points.
SIMULATION_GAP_POINTS = 1.0
_SLOWEST = 15  # layers listed of an engine


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
    )


def _rows(run: Run) -> tuple[list[EngineRow], dict[str, Record], list[str]]:
    """Every engine folder with a record, in the order they were built; the machines and the commands that measured."""
    machines: dict[str, Record] = {}
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
        latency = _optional(folder / "latency.json", records.LatencyRecord)
        accuracy = _optional(folder / "accuracy.json", records.AccuracyRecord)
        if accuracy and labels and len(accuracy["labels"]) != len(labels):
            raise RunError(
                f"{folder / 'accuracy.json'} is of {len(accuracy['labels'])} classes, the run has {len(labels)}",
                fix=records.AccuracyRecord.fix,
            )
        for record in (accuracy, latency):
            machine = record.get("measured_on")
            if machine and machine.get("machine_id"):
                machines[str(machine["machine_id"])] = _with_after(machine, record.get("measured_on_after"))
        # What failed left no record of its own: those measured beside it name it.
        bench = latency.get("bench") or {}
        failures.update(bench.get("failures") or {})
        if str(bench.get("command")).startswith("edgeopt "):  # not the name of a program that used it as a library
            commands[str(bench.get("created"))] = str(bench["command"])
        figures = variants.get(str(build.get("variant")), {}).get("metrics") or {}
        row = _row(folder, key, build, latency, accuracy, figures)
        rows.append(replace(row, reason=damaged[key].message, elsewhere=True) if key in damaged else row)
    return [_with_failure(row, failures) for row in rows], machines, [commands[when] for when in sorted(commands)]


def _with_after(machine: Record, after: Record | None) -> Record:
    """The machine, with what may have changed while it measured."""
    names = ("frequency_mhz", "temperature_c", "throttled", "load_1m")
    changed = {name: after[name] for name in names if after and after.get(name) not in (None, "", machine.get(name))}
    return {**machine, "after": changed} if changed else machine


def _with_failure(row: EngineRow, failures: Record) -> EngineRow:
    failed = failures.get(row.key)
    return replace(row, reason=f"could not be timed: {failed}") if failed and row.p50_ms is None else row


def _row(folder: Path, key: str, build: Record, latency: Record, accuracy: Record, figures: Record) -> EngineRow:
    target, _, tail = key.partition("/")
    profile = build.get("profile") or {}
    drop = accuracy.get("drop") or {}
    return EngineRow(
        key=key,
        target=target,
        variant=str(build.get("variant") or tail),
        backend=str(build.get("backend") or latency.get("backend") or target),
        precision=str(build.get("precision") or latency.get("precision") or "fp32"),
        scheme=build.get("scheme"),
        title=str(profile.get("title") or ""),
        top1=accuracy.get("top1"),
        top1_ci=_pair(accuracy.get("top1_ci")),
        top5=accuracy.get("top5"),
        pictures=accuracy.get("n"),
        drop_points=accuracy.get("drop_points"),
        drop_ci_points=_pair(accuracy.get("drop_ci_points")),
        drop_lower_points=accuracy.get("drop_lower_points"),
        drop_upper_points=accuracy.get("drop_upper_points"),
        detectable_points=drop.get("detectable_points"),
        lost=drop.get("lost"),
        gained=drop.get("gained"),
        mcnemar_p=drop.get("mcnemar_p"),
        agreement=accuracy.get("agreement"),
        **_answers(accuracy),
        size_bytes=_size(folder, build),
        macs=figures.get("macs"),
        params=figures.get("parameters"),
        elsewhere=bool(build) and (build.get("engine") is None or build.get("runs_here") is False),
        reason=str(build.get("reason") or ""),
        device_command=str(build.get("device_command") or ""),
        profile_budget=validate(Budget, profile.get("budget") or {}, where=f"{key}/build.json"),
        per_class=_per_class(accuracy.get("per_class") or {}),
        class_drops=accuracy.get("class_drops") or {},
        confusion=_confusion(accuracy),
        **_confidence(accuracy),
        **_timing(latency),
        **_fusion(folder, build),
        **_where(latency or accuracy),
    )


def _answers(accuracy: Record) -> dict[str, Any]:
    """Which test pictures were answered wrongly, and what tells one test set from another: its labels in order."""
    if not accuracy:
        return {}
    truth, predictions = (np.asarray(accuracy[name], dtype=np.int64) for name in ("truth", "predictions"))
    named = "\n".join([*map(str, accuracy["labels"]), ",".join(map(str, truth.tolist()))])
    wrong = tuple(np.flatnonzero(truth != predictions).tolist())
    return {"wrong": wrong, "test_set": hashlib.sha256(named.encode()).hexdigest()[:16]}


def _confidence(accuracy: Record) -> dict[str, Any]:
    found, raw = accuracy.get("calibration") or {}, accuracy.get("calibration_raw") or {}
    return {
        "auc": accuracy.get("auc"),
        "temperature": accuracy.get("temperature"),
        "ece": found.get("ece"),
        "ece_raw": raw.get("ece"),
        "bins": tuple((one["n"], one["confidence"], one["accuracy"]) for one in found.get("bins") or ()),
        "roc": accuracy.get("roc") or {},
    }


def _timing(latency: Record) -> dict[str, Any]:
    plain = ("p50_ms", "p90_ms", "p99_ms", "device_p50_ms", "throughput_ips", "peak_memory_bytes")
    others = ("load_s", "cold_start_s", "cpu_ms", "batch", "threads", "stable", "other_load_cores", "fits_target")
    fields: dict[str, Any] = {name: latency.get(name) for name in (*plain, *others)}
    fields["cross_check"] = latency.get("cross_check") or {}
    fields["end_to_end"] = latency.get("end_to_end") or {}
    fields["best_throughput"] = (latency.get("throughput_search") or {}).get("best") or {}
    fields |= {name: _pair(latency.get(name)) for name in ("p50_ci_ms", "p99_ci_ms", "throughput_ci_ips")}
    fields |= {f"bench_{name}": (latency.get("bench") or {}).get(name) for name in ("id", "seconds")}
    fields["window_medians_ms"] = tuple(float(one) for one in latency.get("window_medians_ms") or ())
    fields["density"] = _density(latency.get("samples_ms") or ())
    ratios = latency.get("ratios") or []
    original = next((ratio for ratio in ratios if ratio["kind"] == "original"), None)
    # The fastest other precision of the same engine is the one that int8 must beat.
    floats = min((ratio for ratio in ratios if ratio["kind"] == "float"), key=lambda r: r["speedup"], default=None)
    headline = original or floats
    compiled = next((ratio for ratio in ratios if ratio["kind"] == "compiled"), None)
    for prefix, ratio in (("", headline), ("float_", floats), ("compiled_", compiled)):
        if ratio is not None:
            fields[f"{prefix}speedup"] = ratio["speedup"]
            fields[f"{prefix}speedup_ci"] = _pair(ratio["speedup_ci"])
            fields[f"{prefix}speedup_quiet"] = ratio.get("quiet")
            fields[f"{prefix}baseline"] = ratio["baseline"]
    fields["baseline_kind"] = headline["kind"] if headline else None
    return fields


def _density(samples_ms: Sequence[float], bins: int = 64) -> tuple[Pair, ...]:
    """How often calls took how long: all but the slowest hundredth, in bins of equal ratio, lightly smoothed."""
    if len(samples_ms) < 100:
        return ()
    values = np.log(np.asarray(samples_ms, dtype=np.float64))
    low, high = np.quantile(values, [0.0, 0.99])
    edges = np.linspace(low - 1e-6, max(high, low + 0.01) + 1e-6, bins + 1)
    counts = np.histogram(values, edges)[0].astype(np.float64)
    smooth = np.convolve(np.pad(counts, 2), [0.1, 0.2, 0.4, 0.2, 0.1], mode="valid")
    middles = np.exp((edges[:-1] + edges[1:]) / 2)
    return tuple((float(ms), float(share)) for ms, share in zip(middles, smooth / smooth.max(), strict=True))


def _fusion(folder: Path, build: Record) -> dict[str, Any]:
    fusion = _optional(folder / "fusion.json", records.FusionRecord) or build.get("fusion") or {}
    names = ("compute_layers", "int8_layers", "int8_share", "int8_share_macs")
    return {
        **{name: fusion.get(name) for name in names},
        "float_layers": tuple(str(name) for name in fusion.get("float_layers") or ()),
        "fusion_source": str(fusion.get("source") or ""),
        **_layer_times(folder),
    }


def _layer_times(folder: Path) -> dict[str, Any]:
    times = _optional(folder / "layer_times.json", records.LayerTimesRecord) or {}
    layers = times.get("layers") or []
    return {
        "slowest_layers": tuple((one["name"], one["kind"], one["ms"]) for one in layers[:_SLOWEST]),
        "layers_ms": sum(one["ms"] for one in layers) if layers else None,
    }


def _where(record: Record) -> dict[str, Any]:
    machine = record.get("measured_on") or {}
    if not machine:
        return {}
    name = machine.get("board") or (machine.get("cpu") or {}).get("name")
    return {"machine": name, "measured_on": machine.get("machine_id")}


def _confusion(accuracy: Record) -> tuple[tuple[int, ...], ...]:
    """The matrix of the record, or counted from its answers where it was too large to be written."""
    matrix = accuracy.get("confusion")
    if matrix is None and accuracy.get("predictions") and accuracy.get("truth"):
        predictions, truth = (np.asarray(accuracy[name], dtype=np.int64) for name in ("predictions", "truth"))
        matrix = confusion_matrix(predictions, truth, len(accuracy["labels"])).tolist()
    return tuple(tuple(int(n) for n in row) for row in matrix or ())


def _pruning_flags(row: EngineRow, rows: list[EngineRow]) -> tuple[str, ...]:
    """Fewer multiply-accumulates are no gain by themselves: say so where they did not make the engine faster."""
    flags = []
    for other in rows:
        alike = (other.target, other.precision, other.bench_id) == (row.target, row.precision, row.bench_id)
        if not (alike and row.bench_id and row.macs and other.macs and other.macs > 1.01 * row.macs):
            continue
        ratio = ratio_interval(other.window_medians_ms, row.window_medians_ms)
        if not ratio.low > 1:
            flags.append(f"not shown to be faster than {other.key}, which has more MACs")
    return tuple(flags)


def _per_class(record: Record) -> dict[str, dict[str, float | None]]:
    return {
        str(name): {key: None if value is None else float(value) for key, value in scores.items()}
        for name, scores in record.items()
    }


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
        flags.append("the machine was busy with other work" if busy else "the timing did not settle")
    if row.cross_check.get("agrees") is False:
        flags.append(f"{row.cross_check['tool']} measured {form.ms(row.cross_check['p50_ms'])} ms")
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
    record = _optional(run.data / "split.json", records.SplitRecord)
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


def _size(folder: Path, build: Record) -> int | None:
    """Bytes of the engine and the files it cannot run without (OpenVINO keeps weights beside the graph)."""
    if build.get("size_bytes") is not None:
        return int(build["size_bytes"])
    engine = build.get("engine")
    if engine is None:
        return None
    run_path = folder.parent.parent.parent
    stem = Path(engine).stem
    paths = [run_path / one["path"] for name, one in build["outputs"].items() if Path(name).stem == stem]
    sizes = [path.stat().st_size for path in paths if path.is_file()]
    return sum(sizes) if sizes else None


def _optional(path: Path, kind: type[records.Record] | type[records.FusionRecord]) -> dict[str, Any]:
    return records.read(kind, path) if path.is_file() else {}


def _pair(value: Any) -> Pair | None:
    return (float(value[0]), float(value[1])) if value is not None else None
