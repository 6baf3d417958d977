"""Write what a device builds from: ONNX files checked against the trained model, and prepared picture sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgeopt.config import CalibrationRecipe
from edgeopt.console import Console, Silent
from edgeopt.errors import REPORT, EdgeoptError, LoweringError, ParityError, raise_first
from edgeopt.export.check import check_qdq
from edgeopt.export.float_onnx import export_float
from edgeopt.export.noise import bias_noise, float_noise, half_noise
from edgeopt.export.precision import to_fp16
from edgeopt.export.qdq import export_qdq
from edgeopt.metrics import Float, Parity, float_parity, int8_parity
from edgeopt.models.branches import is_merged, merge_branches
from edgeopt.preprocess import Float32, PreprocessSpec
from edgeopt.run import Run, Stage, stage_key
from edgeopt.schemes import get_scheme
from edgeopt.sets import PictureSet
from edgeopt.stages.calibrating import calibration_set
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.workspace import Workspace, calibration_name, open_workspace

VERSION = 4
_REFERENCE_PICTURES = 256  # answers kept beside the ONNX, for every device to compare its engine with
_BATCH = 16
_OTHERWISE = "build for a runtime that needs no float16: edgeopt build --target onnxruntime"
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def export(
    run: Run,
    *,
    variants: Sequence[str] = (),
    data: str | None = None,
    force: bool = False,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Export ``variants`` (default: the original and all int8 ones) and prepare calib, val and test pictures.

    Returns the export records by variant. Raises LoweringError, ParityError (the others are exported all the same),
    and DataError when the pictures are gone.
    """
    console = console or Silent()
    wanted = list(variants) or [
        name
        for name, record in run.variants().items()
        if (record.get("parent") is None and not record.get("fold")) or record.get("scheme")
    ]
    workspace = open_workspace(run, data=data, console=console)
    with run.lock():
        workspace.samples()
        written: dict[str, dict[str, Any]] = {}
        failed: list[EdgeoptError] = []
        for name in wanted:
            try:
                written[name] = _export_one(workspace, open_variant(run, name), force, console)
            except (LoweringError, ParityError) as error:
                failed.append(error)
    raise_first(failed)
    return written


def _export_one(workspace: Workspace, variant: Variant, force: bool, console: Console) -> dict[str, Any]:
    key = stage_key(
        inputs={name: variant.record["outputs"][name]["sha256"] for name in ("model", "architecture", "preprocess")},
        config={},
        version=VERSION,
    )
    stage = workspace.run.stage(
        f"host/{variant.name}",
        "export",
        record="parity.json",
        key=key,
        force=force,
        outdated=lambda _: True,  # a variant has one export: of its own weights, in this version's format
    )
    spec = variant.preprocess
    for name in ("val", "test"):
        workspace.prepared(name, spec)
    recipe = CalibrationRecipe.model_validate(variant.record.get("calibration", {"schema": 1}))
    calibration = calibration_set(workspace, recipe, variant)
    if stage.done:
        return stage.skipped(console)
    with console.task(f"exporting {variant.name}"):
        record = _write(stage, variant, spec, calibration, calibration_name(recipe), console)
    if record["half_problem"]:
        console.say(f"{variant.name} has no float16 file, which TensorRT builds from: {record['half_problem']}")
    return record


def _write(
    stage: Stage, variant: Variant, spec: PreprocessSpec, calibration: PictureSet, set_name: str, console: Console
) -> dict[str, Any]:
    model = variant.load()
    onnx = stage.folder / "model.onnx"
    scheme = variant.architecture.scheme
    lowering: dict[str, Any] = {}
    deployed = model
    if scheme is None:
        merging = merge_branches(model, spec.input_shape)
        if merging.said:
            console.say(f"{variant.name}: {merging.said}")
        deployed = merging.model
        export_float(deployed, onnx, input_shape=spec.input_shape)
    else:
        lowering = asdict(export_qdq(model, onnx, input_shape=spec.input_shape, scheme=get_scheme(scheme)))
    reference = _answers(model, calibration, spec)
    floor = noise_floor(model, onnx, calibration, spec) if scheme else None
    parity = check_file(onnx, reference, calibration, spec, floor=floor)
    if not parity.ok:
        raise ParityError(
            f"the ONNX of {variant.name} does not answer as the trained model: {parity.message}",
            fix=f"name the model, and {REPORT}"
            + (f"; to go on without this variant: edgeopt rm {variant.name}" if scheme else ""),
        )
    np.save(stage.folder / "logits.npy", reference, allow_pickle=False)
    outputs = {"onnx": onnx, "logits": stage.folder / "logits.npy"}
    half_noise, half_problem = None, ""
    # TensorRT runs the rest of an int8 network in half precision; CPUs never ask for this file.
    if scheme in (None, "s8a8w"):
        half_noise = half_noises(deployed, calibration, spec)
        half = stage.folder / "model.fp16.onnx"
        try:
            if "fp16" not in half_noise:
                raise LoweringError("its numbers go beyond 65504, the largest of float16", fix=_OTHERWISE)
            write_half(onnx, half, scheme=scheme)
            _require_parity(half, reference, calibration, spec, floor=max(floor or 0.0, half_noise["fp16"]))
            outputs["onnx_fp16"] = half
        except (LoweringError, ParityError) as error:  # of this file: other runtimes build from the other
            half.unlink(missing_ok=True)
            half_problem = error.message
    return stage.commit(
        outputs=outputs,
        stage="export",
        variant=variant.name,
        scheme=scheme,
        lowering=lowering,
        parity=asdict(parity),
        noise_floor=floor,
        half_noise=half_noise,
        half_problem=half_problem,
        merged=is_merged(deployed),
        calibration_folder=f"data/sets/{spec.key}",
        calibration_set=set_name,
    )


def write_half(onnx: Path, half: Path, *, scheme: str | None) -> None:
    """Write ``onnx`` to ``half`` with float16 inside and hold that file against ``scheme``; raises LoweringError."""
    try:
        to_fp16(onnx, half)
    except LoweringError:
        raise
    except Exception as error:  # onnx's checker and its definitions of operators, on graphs that nobody foresaw
        raise LoweringError(f"it cannot be written in float16: {_line(error)}", fix=_OTHERWISE) from error
    if scheme is None:
        return
    before, after = (check_qdq(path, get_scheme(scheme)) for path in (onnx, half))
    if before != after:
        raise LoweringError(f"in float16 {after[1]} of {after[0]} layers are int8, not {before[1]}", fix=_OTHERWISE)


def _require_parity(
    half: Path, reference: npt.NDArray[np.float32], pictures: PictureSet, spec: PreprocessSpec, *, floor: float
) -> None:
    """That the file in float16 answers as the model but for its own noise; raises ParityError or LoweringError."""
    try:
        parity = check_file(half, reference, pictures, spec, floor=floor)
    except Exception as error:  # of the runtime, which has types of its own
        raise LoweringError(f"ONNX Runtime does not take it in float16: {_line(error)}", fix=_OTHERWISE) from error
    if not parity.ok:
        raise ParityError(f"in float16 it does not answer as the trained model: {parity.message}", fix=_OTHERWISE)


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _answers(model: nn.Module, pictures: PictureSet, spec: PreprocessSpec) -> npt.NDArray[np.float32]:
    """Logits (<= 256, classes) of the trained model, in float32 on the CPU."""
    answers: list[npt.NDArray[np.float32]] = []
    with torch.inference_mode():
        for batch in pictures.batches(spec, _BATCH):
            answers.append(model(torch.from_numpy(batch)).float().numpy())
            if len(answers) * _BATCH >= _REFERENCE_PICTURES:
                break
    return np.concatenate(answers)[:_REFERENCE_PICTURES]


def check_file(
    path: Path, reference: npt.NDArray[np.float32], pictures: PictureSet, spec: PreprocessSpec, *, floor: float | None
) -> Parity:
    """The file's own answers, with no runtime optimization, against the model's; ``floor`` None for a float file.

    ONNX Runtime with optimizations off runs QuantizeLinear and DequantizeLinear one by one in float, so this judges
    what was written and not how a CPU multiplies; onnx's reference evaluator stands in where it is not installed.
    """
    answers: list[Float] = []
    run = _plain_runner(path.read_bytes())
    for batch in pictures.batches(spec, _BATCH):
        answers.append(run(batch))
        if len(answers) * _BATCH >= len(reference):
            break
    logits = np.concatenate(answers)[: len(reference)]
    return float_parity(reference, logits) if floor is None else int8_parity(reference, logits, noise_floor=floor)


def noise_floor(model: nn.Module, path: Path, pictures: PictureSet, spec: PreprocessSpec) -> float:
    """What rounding alone makes of the int8 ``model`` and its file: mean |difference| over the logits' spread."""
    batch = next(iter(pictures.batches(spec, 4 * _BATCH)))
    return max(float_noise(model, batch), bias_noise(path, batch, _plain_runner))


def half_noises(model: nn.Module, pictures: PictureSet, spec: PreprocessSpec) -> dict[str, float]:
    """By precision of an engine: what that precision alone makes of the float ``model``'s logits, over their spread.

    Left out is a precision that ``model``'s numbers are too large for.
    """
    batch = next(iter(pictures.batches(spec, 4 * _BATCH)))
    noises = {name: half_noise(model, batch, dtype) for name, dtype in _HALF.items()}
    return {name: noise for name, noise in noises.items() if np.isfinite(noise)}


def _plain_runner(file: bytes) -> Callable[[Float32], Float]:
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(file)
        return lambda batch: np.asarray(evaluator.run(None, {"input": batch})[0], np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda batch: np.asarray(session.run(None, {"input": batch})[0], np.float32)
