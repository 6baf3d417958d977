"""Reads the records of one engine into its row of the table, as they are: accuracy, timings, what runs in int8."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import records
from edgeopt.config import Budget, validate
from edgeopt.metrics import confusion_matrix, macro
from edgeopt.report.engine_row import EngineRow, Pair

Record = Mapping[str, Any]

_SLOWEST = 15  # layers listed of an engine


def engine_row(folder: Path, key: str, build: Record, latency: Record, accuracy: Record, figures: Record) -> EngineRow:
    """The row ``target/variant`` of the engine in ``folder``; a record that is not there is empty.

    ``figures`` are those of its variant. Raises RunError for a damaged record, ConfigError for a damaged budget.
    """
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
        **_macro(accuracy),
        pictures=accuracy.get("n"),
        drop_points=accuracy.get("drop_points"),
        drop_ci_points=_pair(accuracy.get("drop_ci_points")),
        drop_bootstrap_points=_pair(drop.get("bootstrap_points")),
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


def read_optional(path: Path, kind: type[records.Record] | type[records.FusionRecord]) -> dict[str, Any]:
    """The record in ``path``, empty when there is none; raises RunError for a damaged one."""
    return records.read(kind, path) if path.is_file() else {}


def _answers(accuracy: Record) -> dict[str, Any]:
    """Which test pictures were answered wrongly, and what tells one test set from another: its labels in order."""
    if not accuracy:
        return {}
    truth, predictions = (np.asarray(accuracy[name], dtype=np.int64) for name in ("truth", "predictions"))
    named = "\n".join([*map(str, accuracy["labels"]), ",".join(map(str, truth.tolist()))])
    wrong = tuple(np.flatnonzero(truth != predictions).tolist())
    return {"wrong": wrong, "test_set": hashlib.sha256(named.encode()).hexdigest()[:16]}


def _macro(accuracy: Record) -> dict[str, Any]:
    return {f"macro_{name}": value for name, value in (macro(accuracy.get("per_class") or {}) or {}).items()}


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
    fields["windows_by_start"] = tuple(int(one) for one in latency.get("windows_by_start") or ())
    fields["bench_starts"] = len(fields["windows_by_start"]) or None
    fields["density"] = _density(latency.get("samples_ms") or ())
    ratios = latency.get("ratios") or []
    original = next((ratio for ratio in ratios if ratio["kind"] == "original"), None)
    # The fastest other precision of the same engine is the one that int8 must beat.
    floats = min((ratio for ratio in ratios if ratio["kind"] == "float"), key=lambda r: r["speedup"], default=None)
    fp32 = next((one for one in ratios if one["kind"] == "float" and one.get("precision") == "fp32"), None)
    fp32 = None if fp32 is floats else fp32
    headline = original or floats
    compiled = next((ratio for ratio in ratios if ratio["kind"] == "compiled"), None)
    for prefix, ratio in (("", headline), ("float_", floats), ("fp32_", fp32), ("compiled_", compiled)):
        if ratio is not None:
            fields[f"{prefix}speedup"] = ratio["speedup"]
            fields[f"{prefix}speedup_ci"] = _pair(ratio["speedup_ci"])
            fields[f"{prefix}speedup_quiet"] = ratio.get("quiet")
            if ratio.get("starts_differ") and ratio.get("by_start"):
                fields[f"{prefix}speedup_starts"] = _pair((min(ratio["by_start"]), max(ratio["by_start"])))
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
    fusion = read_optional(folder / "fusion.json", records.FusionRecord) or build.get("fusion") or {}
    names = ("compute_layers", "int8_layers", "int8_share", "int8_share_macs")
    return {
        **{name: fusion.get(name) for name in names},
        "float_layers": tuple(str(name) for name in fusion.get("float_layers") or ()),
        "fusion_source": str(fusion.get("source") or ""),
        **_layer_times(folder),
    }


def _layer_times(folder: Path) -> dict[str, Any]:
    times = read_optional(folder / "layer_times.json", records.LayerTimesRecord) or {}
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


def _per_class(record: Record) -> dict[str, dict[str, float | None]]:
    return {
        str(name): {key: None if value is None else float(value) for key, value in scores.items()}
        for name, scores in record.items()
    }


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


def _pair(value: Any) -> Pair | None:
    return (float(value[0]), float(value[1])) if value is not None else None
