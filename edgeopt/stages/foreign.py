"""Runs made of an ONNX file from elsewhere: checked, given labels and a preprocessing, then built like any variant."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.backends.base import Backend, BuildRequest
from edgeopt.backends.onnx_reader import FLOAT, FLOAT16, INT8, UINT8, OnnxModel, read_onnx
from edgeopt.classify import expand
from edgeopt.config import Target
from edgeopt.console import Console, Silent
from edgeopt.errors import BackendError, ConfigError, DataError, RunError
from edgeopt.files import is_plain, make_folder, printable, read_text, sha256, write_json, write_npy, write_text
from edgeopt.picture_files import pillow_quiet
from edgeopt.preprocess import Float32, PreprocessSpec, load_picture
from edgeopt.registry import load_backend
from edgeopt.run import Run, stage_key
from edgeopt.schemes import get_scheme, made_elsewhere
from edgeopt.sets import open_set, write_prepared

#: Q/DQ per channel came with 13; 21 is the newest of ONNX Runtime 1.20, the oldest that edgeopt runs on.
OPSETS = (13, 21)
_DYNAMIC_INT8 = frozenset({"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul"})
#: What a file quantized with QuantFormat.QOperator is made of; ONNX Runtime alone has all of them.
_OPERATORS_OF_INT8 = frozenset({"QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearGlobalAveragePool"})
#: Operators through which an answer is as it was.
_PASSES_ON = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "QuantizeLinear", "DequantizeLinear"})
_VERSION = 1
_EXPORT = "export it again: torch.onnx.export(model, x, FILE, dynamo=True, opset_version=18, "
_DYNAMIC = _EXPORT + 'dynamic_shapes=({0: "batch"},), external_data=False)'
_UNREADABLE = "name a classifier's ONNX file; one that was cut off on its way is to be copied or exported again"
_ONE_A_LINE = "write one class a line, in UTF-8, in the order of the logits"
_MOST_PICTURES, _BATCH = 256, 16


def import_onnx(
    onnx: Path,
    labels: Path,
    *,
    preprocess: Path | None = None,
    pictures: Sequence[str] = (),
    run: Path | None = None,
    console: Console | None = None,
) -> Run:
    """A run whose original is the classifier in ``onnx``, for :func:`edgeopt.api.build` to build engines of.

    ``labels`` is a text file, one class a line in the order of the logits. ``preprocess`` is a ``preprocess.json``;
    without one ImageNet's usual preprocessing at the model's size is assumed, and said. On ``pictures`` (files,
    folders, patterns) every engine's answers are compared with ONNX Runtime's of the file as it is; without them a
    float model is compared on noise, and an int8 one refused. ``run`` is by default ``runs/<file>-<hash>``. The same
    call again opens the run it made. Raises BackendError, one line for all that is wrong with the file; ConfigError,
    DataError.
    """
    console = console or Silent()
    model = read_onnx(onnx, fix=_UNREADABLE)
    names = _labels(labels)
    size = _check(onnx, model, len(names))
    scheme = _scheme(onnx, model)
    if preprocess is None:
        spec = PreprocessSpec(size=size)
        console.say("preprocessing: ImageNet's usual one is assumed; --preprocess FILE states the model's own")
    else:
        spec = PreprocessSpec.read(preprocess)
        if spec.size != size:
            raise ConfigError(
                f"{preprocess} makes pictures of {spec.size[0]}x{spec.size[1]}, {onnx} takes {size[0]}x{size[1]}",
                fix=f"set size = [{size[0]}, {size[1]}] in it",
            )
    if scheme is not None and not pictures:
        raise DataError(
            f"{onnx} is quantized, and int8 engines are compared on real pictures", fix="give some: --data FOLDER"
        )
    files = _pictures(pictures, console)
    key = stage_key(
        inputs={"onnx": sha256(onnx), "labels": sha256(labels)},
        config={"preprocess": spec.to_json(), "pictures": files},
        version=_VERSION,
    )
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", onnx.stem).strip("-.")[:60] or "model"
    opened = Run.create(run or Path("runs") / f"{stem}-{key[:6]}", data_root="", data={}, fingerprint=key)
    with opened.lock():
        _write_data(opened, names, spec, files, console)
        _write_variant(opened, stem, onnx, spec, scheme, key, console)
        _write_export(opened, stem, onnx, spec, scheme, key, console)
    return opened


def _labels(path: Path) -> tuple[str, ...]:
    """The classes in a file that people wrote: with the line ends of any system, with a mark of UTF-8 or without."""
    try:
        text = read_text(path).removeprefix("\ufeff")
    except RunError as error:
        raise ConfigError(error.message, fix=_ONE_A_LINE) from None
    names = tuple(text.replace("\r\n", "\n").rstrip("\n").split("\n"))
    odd = next((name for name in names if not is_plain(name)), None)
    if odd is not None:
        raise ConfigError(f"{path}: {odd[:60]!r} is no class name", fix=_ONE_A_LINE)
    if len(names) < 2 or len(set(names)) != len(names) or not all(names):
        raise ConfigError(f"{path} does not name two or more classes, each once", fix=_ONE_A_LINE)
    return names


def _check(path: Path, model: OnnxModel, classes: int) -> tuple[int, int]:
    """(height, width) of the model's input; raises BackendError with all that keeps it from being a classifier here."""
    problems: list[tuple[str, str]] = []
    opset = model.opsets.get("", 0)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        problems.append((f"its opset is {opset or 'not stated'}, not {OPSETS[0]} to {OPSETS[1]}", _DYNAMIC))
    # What is imported says nothing: a file that ONNX Runtime wrote imports all domains it knows.
    strange = sorted({node.domain for node in model.nodes} - {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
    if strange:
        problems.append((f"it has operators of {printable(', '.join(strange))}", "export it without custom operators"))
    problems += _graph_problems(model)
    dims: tuple[int, ...] = ()
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        found = f"it has {len(model.inputs)} inputs and {len(model.outputs)} outputs, not one of each"
        problems.append((found, "export the classifier alone: one batch of pictures in, logits out"))
    else:
        dtype, dims = next(iter(model.inputs.values()))
        problems += _input_problems(dtype, dims)
        problems += _output_problems(*model.output_kinds[model.outputs[0]], classes)
    if problems:
        raise BackendError(f"{path} cannot be built: {'; '.join(what for what, _ in problems)}", fix=problems[0][1])
    return dims[2], dims[3]


def _graph_problems(model: OnnxModel) -> list[tuple[str, str]]:
    """What the nodes say against it: quantization that is made up while it runs, probabilities for logits."""
    found = []
    dynamic = sorted({node.op_type for node in model.nodes} & _DYNAMIC_INT8)
    if dynamic:
        static = "quantize it ahead: onnxruntime.quantization.quantize_static(..., quant_format=QuantFormat.QDQ)"
        found.append((f"its activations are quantized while it runs ({', '.join(dynamic)})", static))
    own = sorted({node.op_type for node in model.nodes} & _OPERATORS_OF_INT8)
    if own:
        static = "quantize it in the other format: quantize_static(..., quant_format=QuantFormat.QDQ)"
        found.append((f"it is quantized in operators of ONNX Runtime's own ({', '.join(own)}), not with QDQ", static))
    weights = [model.initializers.get(name) for node in model.compute_nodes() for name in node.inputs[1:2]]
    if any(tensor is not None and tensor.dtype == FLOAT16 for tensor in weights):
        found.append(("it computes in float16", "export it in float32; precisions are the target's"))
    makers = {output: node for node in model.nodes for output in node.outputs}
    last = makers.get(model.outputs[0]) if model.outputs else None
    while last is not None and last.op_type in _PASSES_ON and last.inputs:
        last = makers.get(last.inputs[0])
    if last is not None and last.op_type in ("Softmax", "Sigmoid"):
        # Softmax is taken of what it answers: of probabilities that gives others, nearly equal ones.
        found.append(
            (f"it ends with {last.op_type}, so that it answers with no logits", "export it without that layer")
        )
    return found


def _input_problems(dtype: int, dims: tuple[int, ...]) -> list[tuple[str, str]]:
    found = []
    shown = ", ".join("?" if one < 0 else str(one) for one in dims)
    if dtype != FLOAT:
        found.append(("its input is not float32", "export it with float32 inputs; precisions are the target's"))
    if len(dims) != 4:
        found.append((f"its input has the shape ({shown}), not (batch, 3, height, width)", _DYNAMIC))
        return found
    if dims[3] == 3 and dims[1] != 3:
        found.append((f"its input ({shown}) has its channels last", "export it with channels first"))
    elif dims[1] != 3:
        found.append((f"its input ({shown}) is not of 3 channels", "pictures are RGB: export a model of those"))
    elif min(dims[2:]) < 1:
        found.append((f"the height or width of its input ({shown}) is not fixed", _DYNAMIC))
    if dims[0] >= 0:
        found.append((f"its batch is fixed to {dims[0]}", _DYNAMIC))
    return found


def _output_problems(dtype: int, dims: tuple[int, ...], classes: int) -> list[tuple[str, str]]:
    if dtype == FLOAT and not dims:
        return [("it does not state the shape of its output", "state it: onnx.shape_inference.infer_shapes_path(FILE)")]
    shown = ", ".join("?" if one < 0 else str(one) for one in dims)
    if dtype != FLOAT or len(dims) != 2:
        return [(f"its output ({shown}) is not float32 logits (batch, classes)", "end it with the logits")]
    if dims[1] >= 0 and dims[1] != classes:
        return [(f"it has {dims[1]} classes, the labels name {classes}", "give the labels of this model")]
    return []


def _scheme(path: Path, model: OnnxModel) -> str | None:
    """The scheme that the activations and weights of a QDQ model are of; None for a float one."""
    quantizers = [node for node in model.nodes if node.op_type == "QuantizeLinear"]
    if not quantizers:
        return None
    zeros = [model.initializers.get(node.inputs[2]) if len(node.inputs) > 2 else None for node in quantizers]
    kinds = {tensor.dtype if tensor is not None else UINT8 for tensor in zeros}  # ONNX: uint8 where none is given
    if kinds == {UINT8}:
        return "u8a8w" if model.weights_need_8_bits() or _has_uint8_weights(model) else "u8a7w"
    values = [tensor.integers() for tensor in zeros if tensor is not None]
    if kinds == {INT8} and all(value is not None and not value.any() for value in values):
        return "s8a8w"
    if kinds == {INT8}:
        what = "its activations are int8 with zero points other than 0, as quantize_static makes them unless told"
    elif kinds <= {UINT8, INT8}:
        what = "it mixes kinds of quantized activations"
    else:
        what = "its activations are quantized to other types than uint8 and int8"
    raise BackendError(
        f"{path} cannot be built: {what}, which is none of edgeopt's schemes", fix=made_elsewhere(get_scheme("u8a8w"))
    )


def _has_uint8_weights(model: OnnxModel) -> bool:
    """Whether stored tensors are dequantized from uint8, as onnxruntime.quantization makes them when told QUInt8."""
    stored = (model.initializers.get(n.inputs[0]) for n in model.nodes if n.op_type == "DequantizeLinear" and n.inputs)
    return any(tensor is not None and tensor.dtype == UINT8 for tensor in stored)


def _pictures(names: Sequence[str], console: Console) -> list[str]:
    files, failures = expand(names)
    for failure in failures:
        console.say(failure)
    if names and not files:
        raise DataError(f"no picture in {', '.join(map(printable, names))}", fix="name a picture or a folder")
    return files[:_MOST_PICTURES]


def _write_data(run: Run, names: Sequence[str], spec: PreprocessSpec, files: list[str], console: Console) -> None:
    """Labels, and the pictures that engines are compared on: those in ``files``, or noise."""
    folder = make_folder(run.data / "sets" / spec.key)
    write_text(run.data / "labels.txt", "".join(f"{name}\n" for name in names))
    if (folder / "calib.json").is_file():
        return
    pictures, used = [], []
    with pillow_quiet():
        for file in files:
            try:
                pictures.append(load_picture(Path(file), spec))
                used.append(printable(file))
            except DataError as error:
                console.say(f"left out: {error.message}")
    if files and not pictures:
        raise DataError("none of the pictures can be read", fix="give others: --data FOLDER")
    if not pictures:
        console.say("no pictures given (--data FOLDER): answers are compared on noise")
        noise = np.random.default_rng(0).integers(0, 256, (_BATCH, *spec.size, 3), dtype=np.uint8)
        pictures, used = list(noise), [f"noise {index}" for index in range(len(noise))]
    stacked = np.stack(pictures)
    # Nobody said of what classes they are: only answers are compared.
    fill = lambda path: np.save(path, stacked)  # noqa: E731
    write_prepared(folder, "calib", spec, fill=fill, labels=[0] * len(used), paths=used)


def _write_variant(
    run: Run, name: str, onnx: Path, spec: PreprocessSpec, scheme: str | None, key: str, console: Console
) -> None:
    stage = run.stage("host", name, record="stage.json", key=key)
    if stage.done:
        stage.skipped(console)
        return
    write_json(stage.folder / "preprocess.json", spec.to_json())
    shutil.copyfile(onnx, stage.folder / "model.onnx")
    stage.commit(
        outputs={"model": stage.folder / "model.onnx", "preprocess": stage.folder / "preprocess.json"},
        stage="import",
        parent=None,
        scheme=scheme,
        config={"onnx": onnx.name},
    )


def _write_export(
    run: Run, name: str, onnx: Path, spec: PreprocessSpec, scheme: str | None, key: str, console: Console
) -> None:
    stage = run.stage(f"host/{name}", "export", record="parity.json", key=key)
    if stage.done:
        return
    copy = stage.folder / "model.onnx"
    shutil.copyfile(onnx, copy)
    with console.task(f"asking ONNX Runtime for the answers of {onnx.name}"):
        answers = _answers(run, stage.folder, copy, spec, scheme)
    if not np.isfinite(answers).all():
        raise BackendError(
            f"{onnx} answers with numbers that are not finite, before anything was changed in it",
            fix="look at its weights, and at what it expects of pictures: --preprocess FILE, --data FOLDER",
        )
    write_npy(stage.folder / "logits.npy", answers)
    stage.commit(
        outputs={"onnx": copy, "logits": stage.folder / "logits.npy"},
        stage="export",
        variant=name,
        scheme=scheme,
        calibration_folder=f"data/sets/{spec.key}",
        calibration_set="calib",
    )


def _answers(run: Run, folder: Path, onnx: Path, spec: PreprocessSpec, scheme: str | None) -> Float32:
    """What ONNX Runtime answers, on the CPU, for the prepared pictures: (N, classes)."""
    backend: Backend = load_backend("onnxruntime")
    target = Target(schema=1, name="onnxruntime", title="the file as it is", backend="onnxruntime")
    precision = "int8" if scheme else "fp32"
    making: Any = make_folder(folder / "asking")
    try:
        result = backend.build(
            BuildRequest(onnx, making, target, precision, get_scheme(scheme) if scheme else None, spec.input_shape)
        )
        assert result.engine is not None
        with backend.open(making / result.engine, target, precision=precision) as session:
            pictures = open_set(run.data / "sets" / spec.key, "calib")
            return np.concatenate([session.infer(batch) for batch in pictures.batches(spec, _BATCH)])
    finally:
        shutil.rmtree(making)
