"""ONNX files from elsewhere: built, compared and packaged like a variant, or refused with all that is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_onnx
from click.testing import CliRunner
from conftest import paint
from onnx import TensorProto, helper, numpy_helper

import edgeopt
from edgeopt import Run, api
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.cli.build_cmd import command
from edgeopt.config import load_target
from edgeopt.errors import BackendError, ConfigError, DataError, LoweringError, MissingStageError, RunError
from edgeopt.preprocess import PreprocessSpec, load_picture, normalize
from edgeopt.registry import load_backend
from edgeopt.stages import foreign
from edgeopt.stages.build_plan import plan, source_onnx

NAMES = [f"class {index}" for index in range(tiny_onnx.CLASSES)]
SIDE = tiny_onnx.SHAPE[1]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``labels.txt``, ``float.onnx``, ``int8.onnx`` and 24 pictures in ``photos``."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "labels.txt").write_text("\n".join(NAMES) + "\n")
    tiny_onnx.write_float(folder / "float.onnx")
    tiny_onnx.write_qdq(folder / "int8.onnx", "u8a7w")
    (folder / "photos").mkdir()
    for index in range(24):
        paint(index % 5, index).save(folder / "photos" / f"{index:02d}.png")
    return folder


def _answer(onnx_file: Path, picture: Path, spec: PreprocessSpec) -> str:
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    return NAMES[int(session.run(None, {"input": normalize(load_picture(picture, spec)[None], spec)})[0].argmax())]


@pytest.mark.parametrize("name", ["float", "int8"])
def test_a_file_from_elsewhere_is_built_compared_and_asked(desk: Path, tmp_path: Path, name: str) -> None:
    typed = ["--target", "onnxruntime", "--target", "openvino", "--onnx", str(desk / f"{name}.onnx"), "--json"]
    typed += ["--labels", str(desk / "labels.txt"), "--data", str(desk / "photos"), "--run", str(tmp_path / "run")]
    done = CliRunner().invoke(command, typed, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    records = json.loads(done.stdout)
    plain = [one for one in records if one["precision"] not in ("bf16", "fp16")]  # where OpenVINO has those here too
    assert [(one["target"], one["precision"]) for one in plain] == [
        ("onnxruntime", "int8" if name == "int8" else "fp32"), ("openvino", "int8" if name == "int8" else "fp32"),
    ]  # fmt: skip
    for one in records:
        assert (one["parity"]["ok"], one["parity"]["n"]) == (True, 24)
        assert one["fusion"]["int8_share"] == (1.0 if name == "int8" else 0.0)
    run = Run.open(tmp_path / "run")
    picture = desk / "photos" / "07.png"
    [found], _ = api.predict(run, [str(picture)], engine=f"openvino/{name}")
    assert found.label == _answer(desk / f"{name}.onnx", picture, PreprocessSpec(size=(SIDE, SIDE)))
    again = CliRunner().invoke(command, typed, catch_exceptions=False)
    assert [one["created"] for one in json.loads(again.stdout)] == [one["created"] for one in records]


def test_a_package_is_built_again_from_what_it_holds(desk: Path, tmp_path: Path) -> None:
    own = PreprocessSpec(size=(SIDE, SIDE), resize="squash", mean=(0.5, 0.5, 0.5))
    (tmp_path / "preprocess.json").write_text(json.dumps(own.to_json()))
    first = api.import_onnx(
        desk / "float.onnx", desk / "labels.txt", preprocess=tmp_path / "preprocess.json", run=tmp_path / "first"
    )
    api.build(first, "openvino")
    package = api.package(first, "openvino").folder
    second = api.import_onnx(
        package / "model.onnx", package / "labels.txt", preprocess=package / "preprocess.json", run=tmp_path / "second"
    )
    api.build(second, "openvino")
    photos = [str(desk / "photos")]
    assert api.predict(first, photos) == api.predict(second, photos)
    squashed = api.predict(first, photos)[0]
    assert squashed[0].label == _answer(desk / "float.onnx", desk / "photos" / "00.png", own)


@pytest.mark.parametrize("name", ["float", "int8"])
def test_the_command_in_a_packages_readme_builds_it_again_by_its_own_preprocessing(
    desk: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = PreprocessSpec(size=(SIDE, SIDE), resize="squash", mean=(0.5, 0.5, 0.5))
    (tmp_path / "preprocess.json").write_text(json.dumps(own.to_json()))
    first = api.import_onnx(
        desk / f"{name}.onnx",
        desk / "labels.txt",
        preprocess=tmp_path / "preprocess.json",
        pictures=[str(desk / "photos")],
        run=tmp_path / "first",
    )
    api.build(first, "onnxruntime")
    package = api.package(first, "onnxruntime").folder
    [typed] = re.findall(r"^\$ edgeopt build (.*)$", (package / "README.md").read_text(), re.MULTILINE)
    assert ("PICTURES" in typed) == (name == "int8")
    monkeypatch.chdir(package)
    done = CliRunner().invoke(command, typed.replace("PICTURES", str(desk / "photos")).split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    [again] = (package / "runs").iterdir()
    photos = [str(desk / "photos")]
    assert api.predict(Run.open(again), photos) == api.predict(first, photos)


def test_strict_asks_for_the_targets_share_of_the_macs(desk: Path, tmp_path: Path) -> None:
    part = tiny_onnx.write_qdq(tmp_path / "part.onnx", "u8a7w", float_gemm=True)  # 40 of 18,472 MACs in float
    run = api.import_onnx(part, desk / "labels.txt", pictures=[str(desk / "photos")], run=tmp_path / "run")
    with pytest.raises(BackendError, match=r"99\.8% of the MACs are int8 \(2 of 3 .*\), onnxruntime asks for 100%"):
        api.build(run, "onnxruntime", strict=True)
    (tmp_path / "board.toml").write_text(
        'schema = 1\ntitle = "t"\nbackend = "onnxruntime"\nmin_int8_share_macs = 0.95\n'
    )
    [built] = api.build(run, str(tmp_path / "board.toml"), strict=True)
    times = json.loads((run.path / "device/board/part/layer_times.json").read_text())
    assert times["layers"][0]["ms"] >= times["layers"][-1]["ms"]
    assert built.record["fusion"]["int8_layers"] == 2


def _broken(path: Path, **changes: object) -> Path:
    """The float model with another input shape, type or opset, or without its last node."""
    model = onnx.load(str(tiny_onnx.write_float(path)))
    graph = model.graph
    kind = changes.get("dtype", TensorProto.FLOAT)
    if "shape" in changes or "dtype" in changes:
        shape = changes.get("shape", ["batch", *tiny_onnx.SHAPE])
        graph.input[0].CopyFrom(helper.make_tensor_value_info("input", kind, shape))  # type: ignore[arg-type]
    if "output" in changes:
        graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, changes["output"]))  # type: ignore[arg-type]
    if "opset" in changes:
        model.opset_import[0].version = changes["opset"]  # type: ignore[assignment]
    if "domain" in changes:
        model.opset_import.append(helper.make_opsetid("my.company", 1))
        graph.node[-1].domain = str(changes["domain"])
    if "half" in changes:
        weight = next(one for one in graph.initializer if one.name == graph.node[0].input[1])
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    if "operator" in changes:
        graph.node[0].op_type = str(changes["operator"])
    if "unstated" in changes:
        graph.output[0].type.tensor_type.ClearField("shape")
    if "last" in changes:
        graph.node[-1].output[0] = "scores"
        graph.node.append(helper.make_node(changes["last"], ["scores"], ["told"]))  # type: ignore[arg-type]
        graph.node.append(helper.make_node("Flatten", ["told"], ["logits"]))
    if "dynamic" in changes:
        graph.node.insert(0, helper.make_node("DynamicQuantizeLinear", ["input"], ["q", "scale", "zero"]))
    if "second" in changes:
        graph.output.append(helper.make_tensor_value_info("r2", TensorProto.FLOAT, ["batch", 8, 8, 8]))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": [1, 3, 16, 16]}, "its batch is fixed to 1"),
        ({"shape": ["n", 16, 16, 3]}, r"its input \(\?, 16, 16, 3\) has its channels last"),
        ({"shape": ["n", 1, 16, 16]}, "not of 3 channels"),
        ({"shape": ["n", 3, "h", "w"]}, r"height or width of its input \(\?, 3, \?, \?\) is not fixed"),
        ({"shape": ["n", 3, 16, "w"]}, r"height or width of its input \(\?, 3, 16, \?\) is not fixed"),
        ({"shape": ["n", 768]}, r"not \(batch, 3, height, width\)"),
        ({"dtype": TensorProto.UINT8}, "its input is not float32"),
        ({"opset": 11}, "its opset is 11, not 13 to 21"),
        ({"opset": 99, "shape": [4, 3, 16, 16]}, "its opset is 99, not 13 to 21; its batch is fixed to 4"),
        ({"domain": "my.company"}, "operators of my.company"),
        ({"half": True}, "it computes in float16"),
        ({"operator": "QLinearConv"}, r"operators of ONNX Runtime's own \(QLinearConv\), not with QDQ"),
        ({"unstated": True}, "it does not state the shape of its output"),
        ({"second": True}, "1 inputs and 2 outputs"),
        ({"last": "Softmax"}, "it ends with Softmax, so that it answers with no logits"),
        ({"last": "Sigmoid"}, "it ends with Sigmoid"),
        ({"dynamic": True}, r"quantized while it runs \(DynamicQuantizeLinear\)"),
        ({"output": ["batch", 7]}, "it has 7 classes, the labels name 5"),
        ({"output": ["batch", 5, 1, 1]}, r"its output \(\?, 5, 1, 1\) is not float32 logits"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_at_once_with_its_fix(
    desk: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    path = _broken(tmp_path / "broken.onnx", **changes)
    with pytest.raises(BackendError, match=said) as refused:
        api.import_onnx(path, desk / "labels.txt", run=tmp_path / "run")
    assert refused.value.fix
    assert not (tmp_path / "run").exists()


def test_log_probabilities_are_logits(desk: Path, tmp_path: Path) -> None:
    made = api.import_onnx(_broken(tmp_path / "log.onnx", last="LogSoftmax"), desk / "labels.txt", run=tmp_path / "run")
    assert list(made.variants()) == ["log"]


@pytest.mark.parametrize(("uint8", "scheme"), [(False, "u8a7w"), (True, "u8a8w")])
def test_weights_of_uint8_are_no_seven_bit_weights(tmp_path: Path, uint8: bool, scheme: str) -> None:
    """As ``quantize_static`` makes them of QUInt8: where u8*s8 saturates, what shifts them to int8 does so."""
    model = onnx.load(str(tiny_onnx.write_qdq(tmp_path / "a.onnx", "u8a7w")))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node if uint8 else ():
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            for name, shift in ((node.input[0], 128), (node.input[2], 128)):
                values = numpy_helper.to_array(stored[name])
                if values.dtype == np.int8:
                    moved = (values.astype(np.int16) + shift).astype(np.uint8)
                    stored[name].CopyFrom(numpy_helper.from_array(moved, name))
    onnx.save(model, str(tmp_path / "b.onnx"))
    assert foreign._scheme(tmp_path / "b.onnx", read_onnx(tmp_path / "b.onnx")) == scheme


def test_labels_preprocessing_and_pictures_that_do_not_fit_are_refused(desk: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\none\n")
    (tmp_path / "preprocess.json").write_text(json.dumps(PreprocessSpec(size=(8, 8)).to_json()))
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match="does not name two or more classes, each once"):
        api.import_onnx(desk / "float.onnx", tmp_path / "labels.txt", run=run)
    with pytest.raises(ConfigError, match=r"makes pictures of 8x8, .* takes 16x16"):
        api.import_onnx(desk / "float.onnx", desk / "labels.txt", preprocess=tmp_path / "preprocess.json", run=run)
    with pytest.raises(DataError, match="int8 engines are compared on real pictures"):
        api.import_onnx(desk / "int8.onnx", desk / "labels.txt", run=run)
    mixed = tiny_onnx.write_qdq(tmp_path / "mixed.onnx", "s8a8w", zero_point=3)
    with pytest.raises(BackendError, match="int8 with zero points other than 0") as refused:
        api.import_onnx(mixed, desk / "labels.txt", pictures=[str(desk / "photos")], run=run)
    assert "quantize_static" in str(refused.value.fix)
    assert not run.exists()
    shutil.copyfile(desk / "float.onnx", tmp_path / "my model!.onnx")
    made = api.import_onnx(tmp_path / "my model!.onnx", desk / "labels.txt", run=run)
    assert list(made.variants()) == ["my-model"]
    reference = np.load(run / "host/my-model/export/logits.npy")
    assert reference.shape == (16, tiny_onnx.CLASSES)


def test_domains_that_a_file_imports_and_does_not_use_are_no_operators(desk: Path, tmp_path: Path) -> None:
    """ONNX Runtime writes so what it optimized, and its quantizer what it quantized after ``quant_pre_process``."""
    model = onnx.load(str(desk / "float.onnx"))
    model.opset_import.append(helper.make_opsetid("ai.onnx.preview", 1))
    onnx.save(model, str(tmp_path / "optimized.onnx"))
    made = api.import_onnx(tmp_path / "optimized.onnx", desk / "labels.txt", run=tmp_path / "run")
    assert list(made.variants()) == ["optimized"]


def test_labels_may_be_written_on_any_system(desk: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*NAMES, "", ""]).encode())
    made = api.import_onnx(desk / "float.onnx", tmp_path / "labels.txt", run=tmp_path / "run")
    assert (made.data / "labels.txt").read_text() == (desk / "labels.txt").read_text()
    (tmp_path / "labels.txt").write_bytes("\n".join(["\u00e4", *NAMES[1:]]).encode("latin1"))
    with pytest.raises(ConfigError, match="cannot read") as refused:
        api.import_onnx(desk / "float.onnx", tmp_path / "labels.txt", run=tmp_path / "other")
    assert "in UTF-8" in str(refused.value.fix)


def test_a_file_that_cannot_be_read_is_not_to_be_exported_by_edgeopt(desk: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes((desk / "float.onnx").read_bytes()[:200])
    for name in ("cut.onnx", "absent.onnx"):
        with pytest.raises(BackendError) as refused:
            api.import_onnx(tmp_path / name, desk / "labels.txt")
        assert "edgeopt export" not in str(refused.value.fix)


def test_a_file_that_answers_with_nothing_finite_is_not_blamed_on_its_engines(desk: Path, tmp_path: Path) -> None:
    model = onnx.load(str(desk / "float.onnx"))
    weight = next(one for one in model.graph.initializer if one.name in model.graph.node[-1].input)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32("nan"), weight.name))
    onnx.save(model, str(tmp_path / "nan.onnx"))
    with pytest.raises(BackendError, match=r"nan\.onnx answers with numbers that are not finite"):
        api.import_onnx(tmp_path / "nan.onnx", desk / "labels.txt", run=tmp_path / "run")


def test_zero_points_and_weights_in_constant_nodes_are_read_as_if_they_were_initializers(tmp_path: Path) -> None:
    model = onnx.load(str(tiny_onnx.write_qdq(tmp_path / "stored.onnx", "s8a8w")))
    for tensor in list(model.graph.initializer):
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    onnx.save(model, str(tmp_path / "constants.onnx"))
    assert read_onnx(tmp_path / "constants.onnx").initializers == read_onnx(tmp_path / "stored.onnx").initializers
    assert foreign._scheme(tmp_path / "constants.onnx", read_onnx(tmp_path / "constants.onnx")) == "s8a8w"


def test_a_misspelt_target_is_said_before_a_run_is_made(desk: Path, tmp_path: Path) -> None:
    typed = ["--target", "openvin", "--onnx", str(desk / "float.onnx"), "--labels", str(desk / "labels.txt")]
    done = CliRunner().invoke(command, [*typed, "--run", str(tmp_path / "run")])
    assert isinstance(done.exception, ConfigError)
    assert not (tmp_path / "run").exists()


def test_what_needs_labels_or_training_says_that_there_are_none(desk: Path, tmp_path: Path) -> None:
    run = api.import_onnx(desk / "float.onnx", desk / "labels.txt", run=tmp_path / "run")
    assert run.next_command().startswith("edgeopt build --target")
    api.build(run, "onnxruntime")
    for verb in (api.bench, api.evaluate, api.export, lambda one: api.compress(one, edgeopt.CompressConfig(int8=True))):
        with pytest.raises(RunError, match="made of an ONNX file alone"):
            verb(run)
    assert run.next_command() == "edgeopt package --target onnxruntime"
    assert api.package(run, "onnxruntime").summary().count("MiB") == 1


def test_a_target_of_int8_alone_says_how_a_file_from_elsewhere_becomes_int8(desk: Path, tmp_path: Path) -> None:
    """Nothing was built of a float file, and nothing said."""
    (tmp_path / "gpu.toml").write_text(
        'schema = 1\ntitle = "t"\nbackend = "tensorrt_rtx"\nprecision = "int8"\nscheme = "s8a8w"\n'
    )
    target, backend = load_target(str(tmp_path / "gpu.toml")), load_backend("tensorrt_rtx")
    run = api.import_onnx(desk / "float.onnx", desk / "labels.txt", run=tmp_path / "float")
    with pytest.raises(LoweringError, match="float has no float16 file") as unmade:
        source_onnx(run, backend, "float", "fp16")
    assert str(unmade.value.fix) == "build for another runtime: edgeopt build --target onnxruntime", (
        "its owner has no 65504"
    )
    with pytest.raises(MissingStageError, match="gpu builds int8 engines alone, and float is float") as refused:
        plan(run, target, backend)
    assert "ActivationSymmetric" in str(refused.value.fix)
    quantized = api.import_onnx(
        desk / "int8.onnx", desk / "labels.txt", pictures=[str(desk / "photos")], run=tmp_path / "int8"
    )
    with pytest.raises(MissingStageError, match="gpu runs no int8 but s8a8w, which int8 is not of") as refused:
        plan(quantized, target, backend)
    assert "ActivationSymmetric" in str(refused.value.fix)
