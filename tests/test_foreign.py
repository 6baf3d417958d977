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

from edgeopt import Run, api
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.cli.build_cmd import command
from edgeopt.errors import BackendError, ConfigError, DataError
from edgeopt.preprocess import PreprocessSpec, load_picture, normalize
from edgeopt.stages import foreign

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
        ({"domain": True}, "operators of my.company"),
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
    with pytest.raises(BackendError, match="mixes kinds of quantized activations"):
        api.import_onnx(mixed, desk / "labels.txt", pictures=[str(desk / "photos")], run=run)
    assert not run.exists()
    shutil.copyfile(desk / "float.onnx", tmp_path / "my model!.onnx")
    made = api.import_onnx(tmp_path / "my model!.onnx", desk / "labels.txt", run=run)
    assert list(made.variants()) == ["my-model"]
    reference = np.load(run / "host/my-model/export/logits.npy")
    assert reference.shape == (16, tiny_onnx.CLASSES)
