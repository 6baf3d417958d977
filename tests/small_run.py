"""A small complete run folder, made without training: tiny ONNX, real engines of ONNX Runtime, planted timings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny_onnx

from edgeopt.bench import BenchResult, EngineResult, EngineSpec, accuracy_record, write_accuracy, write_records
from edgeopt.config import load_target
from edgeopt.environment import record as machine_record
from edgeopt.files import sha256, write_json
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run
from edgeopt.sets import open_set
from edgeopt.stages.build import build
from edgeopt.stages.engines import engines

CLASSES = tuple(f"class {index}" for index in range(tiny_onnx.CLASSES))
SPEC = PreprocessSpec(size=(16, 16))
FLOAT, INT8 = "onnxruntime/float", "onnxruntime/int8-u8a7w"
_PICTURES = 20


def write_small_run(path: Path) -> Run:
    """A run with a float and an int8 variant, built for ONNX Runtime, judged on 20 pictures, with planted timings."""
    items = [
        [f"{split}-{i}.png", i % len(CLASSES), "0" * 64, split] for split in ("train", "val", "test") for i in range(20)
    ]
    run = Run.create(path, data_root="photos", data={"path": "photos"}, fingerprint="a" * 64)
    run.data.mkdir()
    (run.data / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    record = {"schema": 1, "fingerprint": "a" * 64, "root": "photos", "classes": list(CLASSES), "items": items}
    write_json(run.data / "split.json", record)
    for name in ("calib", "val", "test"):
        write_small_set(run.data / "sets" / SPEC.key, name)
    write_variant(run, "float", None)
    write_variant(run, "int8-u8a7w", "u8a7w")
    build(run, "onnxruntime")
    _measure(run)
    return run


def write_ensemble(run: Run) -> None:
    """An ensemble of variants that no device asks for."""
    stage = run.stage("host", "ensemble-weighted", record="ensemble.json", key="e" * 64)
    weights = run.variant("float")["outputs"]["model"]["sha256"]
    stage.commit(
        outputs={},
        stage="ensemble",
        vote="weighted",
        members=[
            {"variant": name, "model_sha256": weights, "temperature": 1.1, "val_top1": 0.5}
            for name in ("float", "float-soup")
        ],
        weights=[0.25, 0.75],
        best_member="float",
        metrics={"val_top1": 0.6, "temperature": 0.9},
    )


def write_small_set(folder: Path, name: str) -> None:
    """A prepared set of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(len(name)).integers(0, 256, (_PICTURES, 16, 16, 3)).astype(np.uint8)
    np.save(folder / f"{name}.npy", pictures)
    np.save(folder / f"{name}.labels.npy", np.arange(_PICTURES) % len(CLASSES))
    stated = {"schema": 1, "name": name, "paths": [f"{name}-{i}.png" for i in range(_PICTURES)]}
    hashes = {file: sha256(folder / file) for file in (f"{name}.npy", f"{name}.labels.npy")}
    write_json(folder / f"{name}.json", {**stated, "preprocess": SPEC.to_json(), "sha256": hashes})


def write_variant(run: Run, name: str, scheme: str | None) -> None:
    stage = run.stage("host", name, record="stage.json", key=sha_of(name))
    files = {"model": "model.safetensors", "architecture": "architecture.json", "preprocess": "preprocess.json"}
    paths = {key: stage.folder / file for key, file in files.items()}
    paths["model"].write_bytes(b"weights that no device reads")
    architecture = {"schema": 1, "source": "timm", "name": "resnet18", "arguments": {"num_classes": len(CLASSES)}}
    write_json(paths["architecture"], architecture)
    write_json(paths["preprocess"], SPEC.to_json())
    stage.commit(
        outputs=paths,
        stage="finetune",
        parent=None if scheme is None else "float",
        scheme=scheme,
        config={},
        inputs={} if scheme is None else {"source": sha256(paths["model"])},
        metrics={"val_top1": 0.5, "parameters": 1000, "macs": 10_000},
    )
    export = run.stage(f"host/{name}", "export", record="parity.json", key=sha_of(f"export of {name}"))
    onnx, logits = export.folder / "model.onnx", export.folder / "logits.npy"
    tiny_onnx.write_float(onnx) if scheme is None else tiny_onnx.write_qdq(onnx, scheme)
    np.save(logits, _answers(onnx, run))
    export.commit(
        outputs={"onnx": onnx, "logits": logits},
        stage="export",
        variant=name,
        scheme=scheme,
        noise_floor=None if scheme is None else 0.1,
        calibration_folder=f"data/sets/{SPEC.key}",
        calibration_set="calib",
    )


def _answers(onnx: Path, run: Run) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    batch = next(open_set(run.data / "sets" / SPEC.key, "calib").batches(SPEC, _PICTURES))
    return np.asarray(session.run(None, {"input": batch})[0], np.float32)


def _measure(run: Run) -> None:
    truth, original, results = np.arange(_PICTURES) % len(CLASSES), None, {}
    rng, machine = np.random.default_rng(0), machine_record()
    for key, ms in ((FLOAT, 2.0), (INT8, 1.0)):
        logits = np.eye(len(CLASSES), dtype=np.float32)[(truth + (truth == 1)) % len(CLASSES)]
        baseline = FLOAT if original else None
        record = accuracy_record(
            logits, truth, CLASSES, key=key, baseline=baseline, baseline_predictions=original if original else None
        )
        original = original or record["predictions"]
        engine = engines(run)[key]
        write_accuracy(engine.folder, {**record, "build_key": engine.record["key"]})
        windows = tuple(tuple((ms * rng.uniform(0.9, 1.1, 40)).round(5).tolist()) for _ in range(8))
        spec = EngineSpec(key, "onnxruntime", Path("x"), load_target("onnxruntime"), engine.precision, threads=1)
        results[key] = EngineResult(spec, windows, 0.1, 50 * 2**20, {}, 0.0, True)
    write_records(run.path, BenchResult("planted", results, {}, 1, 8, 1.0, machine, machine), original=FLOAT)


def sha_of(text: str) -> str:
    """A hash for a planted key."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
