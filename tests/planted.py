"""What else a run folder may hold: of training, of pruning to a latency, of the ladder, of a device; all planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import tiny_onnx
from small_run import CLASSES, FLOAT, SPEC, sha_of, write_ensemble

from edgeopt.config import load_target
from edgeopt.files import write_json
from edgeopt.run import Run
from edgeopt.stages.candidates import bench_candidates

_SHARE = {"p50_ms": 1.5, "share_of_unpruned": 0.75, "share_of_unpruned_ci": [0.7, 0.8]}
_PLAN = {
    **_SHARE,
    "way": "latency",
    "met": True,
    "predicted_share": 0.74,
    "kept_importance": 0.9,
    "untrained_val_loss": 2.0,
}
SEARCH: dict[str, Any] = {
    "goal": {"limit_share": 0.8},
    "candidates": [{"p50_ms": 2.0, "share_of_unpruned": 1.0, "share_of_unpruned_ci": [1.0, 1.0]}, _SHARE],
    "sizes": [_SHARE],
    "table_error": {"engines": 5, "median": 0.02, "largest": 0.06},
    "plans": [_PLAN, {"way": "depth", "met": False}],
    "chosen": _PLAN,
}
#: Fields of ``host/float/stage.json``.
_PRUNED = {
    "ingredients": {"val_scores": {"float-fold1of3": 0.5, "float-fold2of3": 0.4}},
    "cross_validation": {"fold_top1": [0.5, 0.4, 0.6], "mean_top1": 0.5, "spread_top1": 0.1},
    "pruning": {
        **{"macs_before": 200, "macs_after": 100, "parameters_before": 20, "parameters_after": 10},
        "latency": {"target": "openvino", "share_of_unpruned": 0.6, "share_of_unpruned_ci": [0.5, 0.7]},
        "widths": {"conv1": [64, 48]},
        "untouched": {"fc": "classifier"},
    },
    "latency_search": SEARCH,
}
_RUNG = {
    "name": "ptq",
    "title": "PTQ",
    "how": "min-max",
    "val_top1": 0.5,
    "val_loss": 1.0,
    "drop": {"drop_points": 0.5, "lower_points": -1.0, "upper_points": 2.0, "n": 20},
    "loss_over_float": {"mean": 0.1, "ci": [0.0, 0.2]},
    "loss_over_best": {"mean": 0.05, "ci": [0.0, 0.1]},
    "seconds": 3.0,
    "holds": False,
    "p50_ms": 1.0,
    "float_layers": ["conv1"],
    "sensitivity": [{"layer": "conv1", "loss_increase": 0.1}],
}
LADDER: dict[str, Any] = {
    "max_drop_points": 1.0,
    "reference": "float",
    "chosen": "ptq",
    "stopped": "it holds",
    "limits": {"time": 3600.0, "trials": 4},
    "verdict": "undecided",
    "pictures_to_decide": 2000,
    "timed_on": "onnxruntime",
    "layers": [{"layer": "conv1", "loss_increase": 0.1, "cost_ms": 0.2}],
    "rungs": [_RUNG],
}
#: Fields of ``host/int8-u8a7w/stage.json``.
_CLIMBED = {"fold": {"fold": 0, "of": 3}, "float_layers": ["fc"], "ladder": LADDER}
_VERDICT = {
    "asked": "0.8x",
    "target": "onnxruntime",
    "verdict": "undecided",
    "seconds_to_decide": 40.0,
    "p50_ms": 1.5,
    "p50_ci_ms": [1.4, 1.6],
    "unpruned_p50_ms": 2.0,
    "share_of_unpruned": 0.79,
    "share_of_unpruned_ci": [0.75, 0.83],
    "val_top1": 0.5,
    "recommended": True,
    "rival": "int8-u8a7w",
}


def plant(run: Run) -> None:
    """Every other kind of record into ``run``, which is complete: an ensemble, a model pruned to a latency and more."""
    write_ensemble(run)
    host = run.path / "host"
    _edit(host / "float/stage.json", **_PRUNED)
    _edit(host / "int8-u8a7w/stage.json", **_CLIMBED)
    verdict = run.stage("host/int8-u8a7w", "latency", record="verdict.json", key=sha_of("verdict"))
    verdict.commit(outputs={}, stage="latency", **_VERDICT)
    lines = [{"event": "initial"}, *({"epoch": one, "train_loss": 1 / one, "val_top1": 0.4} for one in (1, 2))]
    (host / "float/log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_json(host / "float/lr_range.json", {"schema": 1, "lr": 0.1, "rates": [0.01, 0.1], "smoothed": [2.0, 1.0]})
    wrong = json.loads((run.path / "device" / FLOAT / "accuracy.json").read_text())["mistakes"]
    beside = run.path / "device/pytorch/float"
    beside.mkdir(parents=True)
    maps = [{"index": one["index"], "answer": one["answer"]} for one in wrong]
    write_json(beside / "gradcam.json", {"schema": 1, "pictures": maps})
    np.save(beside / "gradcam.npy", np.zeros((len(maps), 4, 4), np.uint8))
    _plant_candidates(run)


def _plant_candidates(run: Run) -> None:
    """Two networks for ONNX Runtime to time, really timed."""
    stage = run.stage("host/float", "candidates-onnxruntime", record="candidates.json", key=sha_of("candidates"))
    outputs: dict[str, Path] = {}
    for name in ("unpruned", "candidate-1", "size-16x16"):
        outputs[name] = tiny_onnx.write_qdq(stage.folder / f"{name}.onnx", "u8a7w")
    stage.commit(
        outputs=outputs,
        stage="candidates",
        variant="float",
        target="onnxruntime",
        scheme="u8a7w",
        profile=load_target("onnxruntime").model_dump(mode="json", by_alias=True),
        layers=["conv1", "fc"],
        groups=[{"name": "conv1", "units": len(CLASSES)}],
        candidates={
            "unpruned": {"cuts": [0], "size": None},
            "candidate-1": {"cuts": [2], "size": None},
            "size-16x16": {"cuts": None, "size": list(SPEC.size)},
        },
    )
    bench_candidates(run, seconds=hostile.SECONDS)


def _edit(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})
