"""Writes what was measured into the run folder: ``latency.json`` and ``accuracy.json`` beside each engine.

``device/<target>/<variant>/latency.json``, schema 1:
  ``key, target, variant`` (folder), ``backend, precision, batch, threads``;
  ``p50_ms, p50_ci_ms [low, high], p90_ms, p99_ms, p99_ci_ms, mean_ms``: milliseconds a call of one batch, host to host;
  every window weighs alike in the percentiles, p99 only from 1,000 samples on; ``device_p50_ms``: the GPU's kernels
  alone, by its own clock (null without such a clock);
  ``throughput_ips, throughput_ci_ips``: pictures a second, calls one after another;
  ``samples`` (how many), ``window_medians_ms``, ``windows_by_start`` (how many of them, in order, each start of the
  process gave), ``samples_ms`` (every ``samples_kept_every``-th);
  ``load_s`` (to open the engine), ``cold_start_s`` (from starting its process to its first answer, interpreter
  and runtime included; of its quickest start, as ``load_s``), ``cpu_ms`` (CPU time of a call, all threads, median of
  the windows' means), ``end_to_end``
  (medians over encoded test pictures, ms a picture: ``decode_ms, preprocess_ms, infer_ms``; null without them);
  ``load_by_window`` (cores that others kept busy, ``other_cores``, and a hypervisor took, ``steal_cores``);
  ``peak_memory_bytes`` (of its process, runtime and pictures included);
  ``other_load_cores`` (kept busy by other processes meanwhile, null where unreadable), ``stable`` (the interval of p50
  is at most 10 % wide and others kept at most a quarter of a core busy);
  ``fits_target`` (measured on the device the target describes);
  ``session`` (what the runtime says it runs);
  ``ratios``: ``[{"baseline": key, "kind": "original" | "compiled" | "float", "precision", "speedup", "speedup_ci",
  "quiet", "by_start", "starts_differ"}]``, how many times as fast this engine is as the original, and as the same
  target's engines of other precisions, windows paired; ``quiet`` is false when other work may have slowed one of the
  two more than the other; ``by_start`` is the ratio in each start of all processes, over all of which ``speedup_ci``
  reaches, and ``starts_differ`` whether by more than 3 % and than their windows explain;
  ``bench``: ``{"id", "starts", "rounds", "seconds", "created", "command", "failures": {key: reason}}``, equal in all
  measured together, in ``starts`` times new processes;
  ``throughput_search`` (null unless asked for): ``cap_ms`` and, in pictures a second, what was ``tried`` and is
  ``best`` (measured anew, because the best of many was lucky too): ``batch, streams`` (processes at once)``, threads,
  throughput_ips, p50_ms, p90_ms`` of a call; ``again`` are all that were measured anew;
  ``cross_check`` (null unless asked for): the same engine by its runtime's own ``tool``, in turn with edgeopt:
  ``p50_ms, edgeopt_p50_ms, ratio, ratio_ci, rounds, agrees`` (within 5 %; null where noise leaves that open);
  ``measured_on`` and ``measured_on_after``: the machine's records before and after.

``accuracy.json``, schema 1:
  ``key, target, variant, set, n``; ``top1, top1_ci, top5`` (fractions; top5 null with five classes or fewer);
  ``per_class`` (name -> n, correct, recall, precision, f1, auc: one against the rest), ``auc`` (their mean),
  ``confusion`` (rows true; null over 100 classes), ``labels`` (class names);
  ``temperature`` (fitted on val, what logits are divided by), ``calibration`` (``ece``, ``nll`` and the reliability
  diagram's ``bins`` with it) and ``calibration_raw`` (without it); ``roc`` (class -> [[false, true positive rate]];
  null over 24 classes); ``mistakes`` (the most confident wrong answers: index in the set, truth, answer, probability);
  ``predictions`` and ``truth``: class indices, in the set's order; ``baseline``: key of the float original, null in its
  own record, and against it on the same pictures ``agreement, drop_points, drop_ci_points, drop_lower_points,
  drop_upper_points`` (one-sided 95 %), ``drop`` (all of the paired comparison), ``class_drops`` (the same class by
  class, see ``metrics.class_drops``), each null without a baseline;
  ``parity`` (to the model the engine was made from, null when not given); ``measured_on``.

Numbers that were not measured are null, never estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt import environment, metrics, probability
from edgeopt.bench.crosscheck import CrossCheck
from edgeopt.bench.result import BenchResult, EngineResult, bounds
from edgeopt.bench.throughput import Search
from edgeopt.errors import BackendError, DataError
from edgeopt.evaluate import NOT_FINITE
from edgeopt.files import write_json
from edgeopt.metrics import Float, Int64, Parity
from edgeopt.run import command_line, now

SCHEMA = 1
#: A matrix of more classes is millions of zeros; ``predictions`` and ``truth`` hold the same facts.
CONFUSION_CLASSES = 100
ROC_CLASSES = 24  # more curves than anyone can tell apart


def write_records(
    run_path: Path,
    result: BenchResult,
    *,
    original: str | None = None,
    compiled: str | None = None,
    throughput: Mapping[str, Search] | None = None,
    cross_checks: Mapping[str, CrossCheck] | None = None,
) -> list[Path]:
    """Write a ``latency.json`` for each measured engine.

    ``original`` and ``compiled`` are the keys of the PyTorch float model, eager and through torch.compile;
    ``throughput`` is what a search for the best setting found, ``cross_checks`` what other tools measured, by key.
    """
    baselines = {key: kind for key, kind in ((original, "original"), (compiled, "compiled")) if key in result.engines}
    shared = {
        "id": result.id,
        "starts": result.starts,
        "rounds": result.rounds,
        "seconds": result.seconds,
        "created": now(),
    }
    shared["command"] = command_line()
    written = []
    for key in result.engines:
        folder = run_path / "device" / key
        found, checked = (throughput or {}).get(key), (cross_checks or {}).get(key)
        more = {"throughput_search": found.to_json() if found else None}
        more["cross_check"] = checked.to_json() if checked else None
        bench = {**shared, "failures": dict(result.failures)}
        write_latency(folder, result, key, baselines=baselines, bench=bench, more=more)
        written.append(folder / "latency.json")
    return written


def write_latency(
    folder: Path,
    result: BenchResult,
    key: str,
    *,
    baselines: Mapping[str | None, str],
    bench: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the ``latency.json`` of engine ``key`` into ``folder``; ``baselines`` are kinds by key, ``more`` fields."""
    target, _, variant = key.rpartition("/")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "latency.json",
        {
            "schema": SCHEMA,
            "key": key,
            "target": target,
            "variant": variant,
            **result.engines[key].to_json(),
            **(more or {}),
            "ratios": _ratios(result, key, baselines),
            "bench": dict(bench),
            "measured_on": dict(result.machine_before),
            "measured_on_after": dict(result.machine_after),
        },
    )


def _ratios(result: BenchResult, key: str, baselines: Mapping[str | None, str]) -> list[dict[str, Any]]:
    engine = result.engines[key]
    kinds = {other: kind for other, kind in baselines.items() if other != key}
    for other, baseline in result.engines.items():
        if other in (key, *baselines) or baseline.spec.precision == engine.spec.precision:
            continue
        if _embedded(baseline) != _embedded(engine):  # the time of one has the normalization in it
            continue
        if other.rpartition("/")[0] == key.rpartition("/")[0] and baseline.spec.precision != "int8":
            kinds[other] = "float"
    ratios = []
    for baseline_key, kind in kinds.items():
        assert baseline_key is not None
        interval = result.ratio(key, baseline_key)
        by_start, differ = result.ratio_by_start(key, baseline_key)
        ratios.append(
            {
                "baseline": baseline_key,
                "kind": kind,
                "precision": result.engines[baseline_key].spec.precision,
                "speedup": interval.value,
                "speedup_ci": bounds(interval),
                "quiet": engine.quiet and result.engines[baseline_key].quiet,
                "by_start": list(by_start),
                "starts_differ": differ,
            }
        )
    return ratios


def _embedded(engine: EngineResult) -> bool:
    return bool(engine.session.get("embedded_preprocessing"))


def accuracy_record(
    logits: Float,
    labels: Int64,
    names: Sequence[str],
    *,
    key: str,
    set_name: str = "test",
    baseline: str | None = None,
    baseline_predictions: npt.NDArray[Any] | Sequence[int] | None = None,
    parity: Parity | None = None,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """``accuracy.json`` from an engine's logits (N, classes) on a labelled set.

    ``baseline_predictions`` are the float original's answers (class indices) to the same pictures, ``baseline`` its
    key; ``temperature`` the one fitted on val for the engine's variant. Raises DataError for labels or answers that do
    not fit, BackendError for logits that are not numbers.
    """
    if logits.shape != (len(labels), len(names)):
        raise DataError(
            f"{key}: logits {logits.shape} do not fit {len(labels)} labels and {len(names)} classes",
            fix="engine, test set and labels.txt must be of one run: copy the run folder again, as a whole",
        )
    if not np.isfinite(logits).all():
        raise BackendError(f"{key}: the engine answered with numbers that are not finite", fix=NOT_FINITE)
    predictions = logits.argmax(axis=1).astype(np.int64)
    correct = predictions == labels
    target, _, variant = key.rpartition("/")
    return {
        "schema": SCHEMA,
        "key": key,
        "target": target,
        "variant": variant,
        "set": set_name,
        "n": len(labels),
        "top1": metrics.top_k_accuracy(logits, labels),
        "top1_ci": list(metrics.accuracy_interval(correct)),
        "top5": metrics.top_k_accuracy(logits, labels, k=5) if len(names) > 5 else None,
        **_confidence(logits, labels, names, temperature),
        "confusion": _confusion(predictions, labels, len(names)),
        "labels": list(names),
        "predictions": predictions.tolist(),
        "truth": labels.tolist(),
        **_against(baseline, baseline_predictions, predictions, labels, names),
        "parity": parity.to_json() if parity else None,
        "measured_on": environment.record(),
    }


def _confidence(logits: Float, labels: Int64, names: Sequence[str], temperature: float) -> dict[str, Any]:
    """What needs probabilities and not only answers, and the figures of each class."""
    ranked = probability.one_vs_rest(logits, labels, names, temperature=temperature)
    areas = [one["auc"] for one in ranked.values() if one["auc"] is not None]
    figures = metrics.per_class(logits.argmax(axis=1).astype(np.int64), labels, names)
    return {
        "per_class": {name: {**figures[name], "auc": ranked[name]["auc"]} for name in names},
        "auc": float(np.mean(areas)) if areas else None,
        "temperature": temperature,
        "calibration": probability.calibration(logits, labels, temperature=temperature).to_json(),
        "calibration_raw": probability.calibration(logits, labels).to_json(),
        "roc": {name: [list(point) for point in one["roc"]] for name, one in ranked.items()}
        if len(names) <= ROC_CLASSES
        else None,
        "mistakes": probability.worst_mistakes(logits, labels, temperature=temperature),
    }


def _confusion(predictions: Int64, labels: Int64, classes: int) -> list[list[int]] | None:
    if classes > CONFUSION_CLASSES:
        return None
    matrix: list[list[int]] = metrics.confusion_matrix(predictions, labels, classes).tolist()
    return matrix


def _against(
    baseline: str | None,
    baseline_predictions: npt.NDArray[Any] | Sequence[int] | None,
    predictions: Int64,
    labels: Int64,
    names: Sequence[str],
) -> dict[str, Any]:
    bounds = ("drop_ci_points", "drop_lower_points", "drop_upper_points")
    fields = ("agreement", "drop_points", *bounds, "drop", "class_drops")
    if baseline_predictions is None:
        return {"baseline": None, **dict.fromkeys(fields)}
    reference = np.asarray(baseline_predictions, dtype=np.int64)
    if reference.shape != labels.shape:
        raise DataError(
            f"{baseline} answered {len(reference)} pictures, and here are {len(labels)}",
            fix="measure both on one test set: delete their accuracy.json, then edgeopt bench",
        )
    drop = metrics.paired_drop(reference == labels, predictions == labels)
    return {
        "baseline": baseline,
        "agreement": float((reference == predictions).mean()),
        "drop_points": drop.drop_points,
        "drop_ci_points": list(drop.ci_points),
        "drop_lower_points": drop.lower_points,
        "drop_upper_points": drop.upper_points,
        "drop": drop.to_json(),
        "class_drops": metrics.class_drops(reference == labels, predictions == labels, labels, names),
    }


def write_accuracy(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``accuracy.json`` into an engine's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "accuracy.json", dict(record))
