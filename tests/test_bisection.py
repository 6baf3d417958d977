"""Where an engine parts from its ONNX: real runtimes, one layer changed behind their backs, found by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_onnx
from onnx import numpy_helper
from small_run import write_small_run

from edgeopt import api
from edgeopt.backends import onnxruntime_session
from edgeopt.backends.base import Backend, BuildRequest, BuildResult, FusionReport
from edgeopt.backends.bisection import as_written, expose, first_difference
from edgeopt.backends.onnxruntime import OnnxRuntimeBackend
from edgeopt.backends.openvino import OpenVinoBackend
from edgeopt.cli import main
from edgeopt.cli.terminal import Terminal
from edgeopt.config import Target
from edgeopt.errors import BackendError, ParityError, raise_first
from edgeopt.files import read_json, sha256, write_json
from edgeopt.run import Run
from edgeopt.stages import build as build_stage
from edgeopt.stages import build_plan
from edgeopt.stages.build import _noise_floor, build_each
from edgeopt.stages.build_plan import Planned
from edgeopt.stages.built import Built, misjudged
from edgeopt.stages.engines import left_out

BACKENDS = [OnnxRuntimeBackend, OpenVinoBackend]
PICTURES = np.random.default_rng(0).normal(size=(8, *tiny_onnx.SHAPE)).astype(np.float32)


def _changed(source: Path, initializer: str, path: Path) -> Path:
    """The model with the sign of one layer's weights turned."""
    model = onnx.load(str(source))
    [tensor] = [one for one in model.graph.initializer if one.name == initializer]
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), initializer))
    onnx.save(model, str(path))
    return path


def _target(backend: type[Backend]) -> Target:
    return Target(schema=1, title="t", backend=backend.name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("initializer", "layer"),
    [("conv_q", "Conv_c1 (Conv)"), ("depthwise_q", "Conv_c2 (Conv)"), ("gemm_q", "Gemm_gemm_out")],
)
def test_the_first_layer_that_computes_something_else_is_named(
    backend: type[Backend], initializer: str, layer: str, tmp_path: Path
) -> None:
    right = tiny_onnx.write_qdq(tmp_path / "right.onnx", backend().schemes()[0])
    wrong = _changed(right, initializer, tmp_path / "wrong.onnx")
    found = first_difference(backend(), wrong, _target(backend), "int8", PICTURES, reference=right)
    assert found is not None
    assert found.startswith(layer)
    assert first_difference(backend(), right, _target(backend), "int8", PICTURES) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_float_layer_is_named_as_well(backend: type[Backend], tmp_path: Path) -> None:
    right = tiny_onnx.write_float(tmp_path / "right.onnx")
    wrong = _changed(right, "depthwise", tmp_path / "wrong.onnx")
    found = first_difference(backend(), wrong, _target(backend), "fp32", PICTURES, reference=right)
    assert found == "Conv_c2 (Conv)"
    assert first_difference(backend(), right, _target(backend), "fp32", PICTURES) is None


def test_what_an_engine_is_compared_with_is_computed_operator_by_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused as the engine's, a kernel that computes wrongly would agree with itself; ONNX Runtime's profile tells."""
    source = tiny_onnx.write_qdq(tmp_path / "a.onnx", "u8a7w")
    real, written = onnxruntime_session.run_one, {"enable_profiling": True, "profile_file_prefix": str(tmp_path / "p")}
    monkeypatch.setattr(onnxruntime_session, "run_one", lambda *asked: real(*asked[:-1], {**asked[-1], **written}))
    assert as_written(source, "logits", PICTURES).shape == (8, tiny_onnx.CLASSES)
    [profile] = tmp_path.glob("p*.json")
    operators = {event["args"].get("op_name") for event in json.loads(profile.read_text()) if event.get("args")}
    assert {"Conv", "Relu", "DequantizeLinear"} <= operators
    assert not {"QLinearConv", "QGemm"} & operators


def test_an_exposed_tensor_is_an_output_to_the_onnx_package_too(tmp_path: Path) -> None:
    source = tiny_onnx.write_qdq(tmp_path / "a.onnx", "u8a7w")
    expose(source, tmp_path / "b.onnx", "r1_q", 2)
    before, after = onnx.load(str(source)).graph, onnx.load(str(tmp_path / "b.onnx")).graph
    assert [one.name for one in after.output] == [*(one.name for one in before.output), "r1_q"]
    assert list(after.node) == list(before.node)
    assert after.output[1].type.tensor_type.elem_type == 2


def _answers_of_another(run: Run, variant: str) -> None:
    """The answers recorded at export become another model's, so that no layer of the engine is to blame."""
    export = run.path / "host" / variant / "export"
    other = np.load(export / "logits.npy")[:, ::-1]
    np.save(export / "logits.npy", other)
    stated = read_json(export / "parity.json")
    stated["outputs"]["logits"]["sha256"] = sha256(export / "logits.npy")
    write_json(export / "parity.json", stated)
    shutil.rmtree(run.path / "device")


def test_a_build_that_answers_otherwise_says_whether_a_layer_or_the_onnx_differs(tmp_path: Path) -> None:
    run = write_small_run(tmp_path / "run")
    _answers_of_another(run, "int8-u8a7w")
    with pytest.raises(
        ParityError, match="every layer computes what the ONNX says, so that it is the ONNX that differs"
    ):
        api.build(run, "onnxruntime")


def test_an_engine_that_answers_otherwise_does_not_keep_the_next_from_being_built(tmp_path: Path) -> None:
    run = write_small_run(tmp_path / "run")
    _answers_of_another(run, "int8-u8a7w")
    built, failed = build_each(run, ["onnxruntime"])
    assert [item.name for item in built] == ["float", "int8-u8a7w"], "records of engines that failed are not lost"
    assert [type(error) for error in failed] == [ParityError]
    assert run.engines()["onnxruntime/float"]["parity"]["ok"]


def test_a_float_baseline_that_answers_otherwise_is_named_and_int8_is_built(tmp_path: Path) -> None:
    run = write_small_run(tmp_path / "run")
    _answers_of_another(run, "float")
    built, failed = build_each(run, ["onnxruntime"])
    assert not failed
    lines = {item.name: item.summary() for item in built}
    assert "not used, for it does not answer as trained: largest difference" in lines["float"]
    assert run.engines()["onnxruntime/int8-u8a7w"]["parity"]["ok"]
    assert "onnxruntime/float" in left_out(run)
    for asked in ({"variants": ["float"]}, {"strict": True}):  # then it is what was asked for
        with pytest.raises(ParityError, match="onnxruntime/float"):
            api.build(run, "onnxruntime", **asked)


def test_every_reason_is_said_when_several_variants_cannot_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both reasons are planted."""
    run = write_small_run(tmp_path / "run")
    made = [Planned("int8-u8a7w", "int8-u8a7w", "int8", "u8a7w"), Planned("a", "a", "int8", "u8a7w")]

    def ensure(*_: object) -> None:
        raise_first([ParityError("a answers otherwise"), ParityError("b answers otherwise")])

    monkeypatch.setattr(build_plan, "ensure_exports", ensure)
    assert build_plan.exported(run, made, needed=(), console=Terminal()) == made[:1]
    said = capsys.readouterr().err
    assert "left out: a: a answers otherwise" in said
    assert "b answers otherwise" in said


@pytest.mark.parametrize(("refused", "failures"), [("fp32", 0), ("int8", 1)])
def test_an_engine_that_the_runtime_refuses_leaves_the_others_built_and_in_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, failures: int
) -> None:
    """The refusal is planted."""
    run = write_small_run(tmp_path / "run")
    shutil.rmtree(run.path / "device")
    built_before = OnnxRuntimeBackend._build

    def build(self: OnnxRuntimeBackend, request: BuildRequest) -> BuildResult:
        if request.precision == refused:
            raise BackendError("it has no such kernel", fix="none")
        return built_before(self, request)

    monkeypatch.setattr(OnnxRuntimeBackend, "_build", build)
    built, failed = build_each(run, ["onnxruntime"])
    assert [error.message for error in failed] == ["it has no such kernel"] * failures
    made = [item for item in built if item.record["engine"]]
    assert [item.record["precision"] for item in made] == ["fp32" if refused == "int8" else "int8"]
    if refused == "fp32":
        assert built[0].summary() == ("onnxruntime/float: left out of the comparison: it has no such kernel; none")


def test_all_that_went_wrong_is_on_stderr_though_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Both refusals are planted."""
    run = write_small_run(tmp_path / "run")

    def plan(_run: Run, profile: Target, *_rest: object) -> list[Any]:
        raise BackendError(f"{profile.name} says no", fix=f"mend {profile.name}")

    monkeypatch.setattr(build_stage, "plan", plan)
    typed = ["build", "--target", "onnxruntime", "--target", "openvino", "--run", str(run.path), "--quiet"]
    with pytest.raises(SystemExit) as ended:
        main(typed)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    for name in ("onnxruntime", "openvino"):
        assert f"edgeopt: {name} says no\n  fix: mend {name}\n" in said


def test_strict_is_not_satisfied_without_an_audit() -> None:
    record: dict[str, Any] = {"precision": "int8", "profile": {"min_int8_share_macs": 0.5}, "reason": "no GPU here"}
    nothing = FusionReport("tensorrt", 0, 0, (), "planted").to_json()
    for fusion in (None, {}, nothing):
        item = Built("tensorrt", "int8-s8a8w", {**record, "fusion": fusion}, skipped=False)
        [error] = misjudged([item], strict=True)
        assert "no audit says what runs in int8 (no GPU here)" in error.message
        assert not misjudged([item], strict=False)


def test_an_int8_engine_with_a_float16_rest_is_judged_by_the_noise_of_both() -> None:
    record = {"noise_floor": 0.01, "half_noise": {"fp16": 0.02}}
    assert _noise_floor(record, "int8", "fp16") == 0.02
    assert _noise_floor(record, "int8", "fp32") == 0.01


@pytest.mark.parametrize(
    ("record", "floors"),
    [
        ({"noise_floor": 0.1, "half_noise": None}, {"int8": 0.1, "fp16": 0.0}),
        ({"noise_floor": None, "half_noise": {"bf16": 0.05, "fp16": 0.01}}, {"int8": 0.0, "bf16": 0.05, "fp16": 0.01}),
        ({}, {"int8": 0.0, "bf16": 0.0}),  # of a run made by an earlier version
    ],
)
def test_an_engine_is_judged_by_the_noise_of_its_own_precision(
    record: dict[str, Any], floors: dict[str, float]
) -> None:
    assert {name: _noise_floor(record, name) for name in floors} == floors
