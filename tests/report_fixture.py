"""A run folder of records only, for rendering: its numbers are planted, none was measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.bench import BenchResult, EngineResult, EngineSpec, accuracy_record, write_accuracy, write_records
from edgeopt.bench.throughput import Search, Setting
from edgeopt.config import Target
from edgeopt.files import write_json

MACHINE = {
    "machine_id": "0123456789ab",
    "cpu": {"name": "Planted CPU 9000", "machine": "x86_64", "flags": ["avx2"], "cores": 2},
    "board": "",
    "gpus": [],
    "memory_bytes": 8 * 2**30,
    "load_1m": 0.12,
    "governor": "performance",
    "os": "Linux-planted",
    "python": "3.11.9",
    "versions": {"edgeopt": "0.1.0", "numpy": "2.3.0", "onnxruntime": "1.31.1"},
}
LABELS = [str(digit) for digit in range(10)]
CREATED = "2026-01-02T03:04:05+00:00"

#: key, variant, precision, scheme, milliseconds, pictures answered wrongly, size, layers in int8 of 50
ENGINES: tuple[tuple[str, str, str, str | None, float, int, int, int], ...] = (
    ("pytorch/float", "float", "fp32", None, 9.0, 4, 13_600_000, 0),
    ("onnxruntime/float", "float", "fp32", None, 2.6, 4, 13_500_000, 0),
    ("onnxruntime/int8-u8a7w", "int8-u8a7w", "int8", "u8a7w", 1.3, 5, 3_600_000, 50),
    ("onnxruntime/int8-u8a7w-prune33", "int8-u8a7w-prune33", "int8", "u8a7w", 0.9, 6, 2_400_000, 50),
    ("openvino/float", "float", "fp32", None, 1.9, 4, 13_700_000, 0),
    ("openvino/int8-u8a7w", "int8-u8a7w", "int8", "u8a7w", 0.8, 5, 3_700_000, 48),
)


def write_run(
    path: Path,
    *,
    labels: list[str] = LABELS,
    pictures: int = 360,
    load: float = 0.0,
    seed: int = 0,
    noise: float = 0.0,
) -> Path:
    """Write the records of a run with the engines of ``ENGINES`` and one that has no engine here.

    ``noise`` is the standard deviation of an engine's windows, as a fraction, beside the drift that all share.
    """
    _write_host(path, labels, pictures)
    plant_training(path)
    rng = np.random.default_rng(seed)
    uneven = np.random.default_rng([seed, 1])
    truth = np.arange(pictures) % len(labels)
    original: list[int] | None = None
    results = {}
    drift = np.exp(np.cumsum(rng.normal(0, 0.01, 24)))
    for key, variant, precision, scheme, ms, wrong, size, int8_layers in ENGINES:
        target = _target(key)
        _write_build(path, key, variant, precision, scheme, target, size, int8_layers)
        logits = np.zeros((pictures, len(labels)), dtype=np.float32)
        answers = truth.copy()
        mistaken = np.arange(wrong) * 37 % pictures
        answers[mistaken] = (answers[mistaken] + 1 + mistaken % 2) % len(labels)
        logits[np.arange(pictures), answers] = 5.0
        record = accuracy_record(
            logits,
            truth,
            labels,
            key=key,
            baseline="pytorch/float" if original else None,
            baseline_predictions=original,
        )
        original = original or record["predictions"]
        write_accuracy(path / "device" / key, {**record, "measured_on": MACHINE})
        paces = drift * np.exp(noise * uneven.normal(size=len(drift)))
        windows = [
            tuple(np.round(ms * d * np.exp(rng.normal(0, 0.02, max(10, int(200 / ms)))), 5).tolist()) for d in paces
        ]
        spec = EngineSpec(key, target.backend, Path("x"), target, precision, threads=2)
        way = {"decode_ms": 1.1, "preprocess_ms": 0.6, "infer_ms": ms, "pictures": 32}
        memory = 90 * 2**20 + size * 3
        results[key] = EngineResult(spec, tuple(windows), 0.2, memory, {}, load, True, 0.9, (1.8 * ms,) * 24, way)
    bench = BenchResult("planted", results, {}, 1, len(drift), 20.0, MACHINE, MACHINE)
    best = Setting(batch=8, streams=2, threads=1, throughput_ips=1500.0, p50_ms=10.5, p90_ms=10.9)
    searches = {key: Search((replace(best, throughput_ips=2000 / row[3]),), None) for key, *row in ENGINES}
    for written in write_records(path, bench, original="pytorch/float", throughput=searches):
        record = json.loads(written.read_text())
        write_json(written, {**record, "bench": {**record["bench"], "created": CREATED, "command": "edgeopt bench"}})
    _write_build(path, "tensorrt/int8-s8a8w", "int8-s8a8w", "int8", "s8a8w", _target("tensorrt/x"), None, 49)
    return path


def _target(key: str, **changes: Any) -> Target:
    name = key.split("/")[0]
    return Target.model_validate({"schema": 1, "name": name, "title": name, "backend": name, **changes})


def _write_host(path: Path, labels: list[str], pictures: int) -> None:
    (path / "data").mkdir(parents=True)
    write_json(
        path / "run.json",
        {"schema": 1, "id": "f" * 32, "created": CREATED, "data_root": "photos", "fingerprint": "a" * 64},
    )
    (path / "data/labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    splits = ["train"] * (pictures * 7 // 2) + ["val"] * (pictures // 2) + ["test"] * pictures
    items = [[f"{i}.png", i % len(labels), "0" * 64, split] for i, split in enumerate(splits)]
    write_json(path / "data/split.json", {"schema": 1, "classes": labels, "items": items})
    for variant, parent, scheme, parameters, macs in (
        ("float", None, None, 3_380_000, 73_000_000),
        ("int8-u8a7w", "float", "u8a7w", 3_380_000, 73_000_000),
        ("int8-u8a7w-prune33", "float", "u8a7w", 2_100_000, 48_000_000),
        ("int8-s8a8w", "float", "s8a8w", 3_380_000, 73_000_000),
    ):
        folder = path / "host" / variant
        folder.mkdir(parents=True)
        command = "edgeopt finetune photos" if parent is None else "edgeopt compress --int8"
        write_json(
            folder / "stage.json",
            {
                "schema": 1,
                "name": variant,
                "key": "b" * 64,
                "created": CREATED,
                "parent": parent,
                "scheme": scheme,
                "metrics": {"parameters": parameters, "macs": macs},
                "outputs": {"model": {"path": f"host/{variant}/model.safetensors", "sha256": "c" * 64}},
                "command": command,
            },
        )


def _write_build(
    path: Path,
    key: str,
    variant: str,
    precision: str,
    scheme: str | None,
    target: Target,
    size: int | None,
    int8_layers: int,
) -> None:
    folder = path / "device" / key
    folder.mkdir(parents=True)
    fusion = {
        "schema": 1,
        "backend": target.backend,
        "compute_layers": 50,
        "int8_layers": int8_layers,
        "int8_share": int8_layers / 50,
        "int8_share_macs": int8_layers / 50,
        "float_layers": [f"blocks.{i}.conv" for i in range(50 - int8_layers)],
        "source": "planted",
    }
    write_json(
        folder / "build.json",
        {
            "schema": 1,
            "created": CREATED,
            "key": "d" * 64,
            "variant": variant,
            "precision": precision,
            "scheme": scheme,
            "target": target.name,
            "backend": target.backend,
            "profile": target.model_dump(mode="json", by_alias=True),
            "engine": "engine" if size else None,
            "size_bytes": size,
            "reason": "" if size else "no NVIDIA GPU here",
            "device_command": "" if size else "edgeopt build --target tensorrt",
            "command": f"edgeopt build --target {target.name}",
            "fusion": fusion if precision == "int8" else None,
            "outputs": {},
        },
    )
    if precision == "int8":
        write_json(folder / "fusion.json", fusion)


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a record."""
    write_json(path, {**json.loads(path.read_text()), **changes})


def with_budget(path: Path, key: str, **budget: float) -> None:
    """Give the target of an engine a budget of its own."""
    record = json.loads((path / "device" / key / "build.json").read_text())
    edit(path / "device" / key / "build.json", profile={**record["profile"], "budget": budget})


__all__ = ["CREATED", "ENGINES", "LABELS", "MACHINE", "edit", "replace", "with_budget", "write_run"]


def plant_rival(run: Path, key: str = "openvino/int8-u8a7w-64px") -> None:
    """An engine of the unpruned model at a smaller input, as pruning to a latency leaves it beside the pruned one."""
    target, _, variant = key.partition("/")
    whole, parent = "int8-u8a7w", "float-64px"
    for name, source, changes in (
        (parent, "float", {"parent": "float", "stage": "resize"}),
        (variant, whole, {"parent": parent, "stage": "quantize"}),
    ):
        shutil.copytree(run / "host" / source, run / "host" / name)
        edit(run / "host" / name / "stage.json", name=name, **changes)
    shutil.copytree(run / "device" / target / whole, run / "device" / key)
    edit(run / "device" / key / "build.json", variant=variant)
    for name in ("accuracy", "latency"):
        edit(run / "device" / key / f"{name}.json", key=key, variant=variant)


def plant_training(run: Path, *, epochs: int = 3) -> None:
    """A log and a range test for the float variant, as training leaves them."""
    lines = [{"event": "initial", "val_top1": 0.1, "val_loss": 2.3}]
    lines += [{"epoch": e, "lr": 1e-3, "train_loss": 2.0 / e, "val_top1": 0.9 + e / 100} for e in range(1, epochs + 1)]
    (run / "host" / "float" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rates, smoothed = [10.0**-e for e in (6, 4, 2, 1)], [2.3, 2.2, 1.0, 9.0]
    tested = {"schema": 1, "lr": 1e-3, "rates": rates, "losses": smoothed, "smoothed": smoothed}
    (run / "host" / "float" / "lr_range.json").write_text(json.dumps(tested))
