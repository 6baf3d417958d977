"""The runtimes' own files: audits against known graphs, exact arithmetic, refusals. What all share is in contracts/."""

from __future__ import annotations

import json
import platform
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_onnx
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from edgeopt import allotment, environment
from edgeopt.backends import capability, gpu, openvino_passes, trt_common, trt_table
from edgeopt.backends import openvino as openvino_backend
from edgeopt.backends.audit import ComputeLayer, conv_macs, fusion_report, matmul_macs
from edgeopt.backends.base import Backend, BuildRequest, BuildResult, Session
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.backends.onnxruntime import OnnxRuntimeBackend
from edgeopt.backends.openvino import OpenVinoBackend, OpenVinoSession
from edgeopt.backends.tensorrt import TensorRtBackend
from edgeopt.backends.tensorrt_rtx import TensorRtRtxBackend
from edgeopt.config import CompressConfig, SessionOptions, Target
from edgeopt.errors import BackendError, MissingBackendError
from edgeopt.registry import BACKENDS
from edgeopt.schemes import SCHEMES, get_scheme

CPU_BACKENDS = [OnnxRuntimeBackend, OpenVinoBackend]
MACS = {"conv": 8 * 8 * 8 * 27, "depthwise": 8 * 8 * 8 * 9, "gemm": 5 * 8}


def request_for(
    backend: type[Backend], onnx_path: Path, folder: Path, scheme: str | None, *, precision: str = "", **session: object
) -> BuildRequest:
    folder.mkdir(parents=True, exist_ok=True)
    return BuildRequest(
        onnx=onnx_path,
        folder=folder,
        target=Target(schema=1, name="here", title="here", backend=backend.name, session=SessionOptions(**session)),
        precision=precision or ("int8" if scheme else "fp32"),
        scheme=get_scheme(scheme) if scheme else None,
        input_shape=tiny_onnx.SHAPE,
    )


def build(
    backend: type[Backend], folder: Path, scheme: str | None, *, float_gemm: bool = False, **session: object
) -> BuildResult:
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.onnx"
    if scheme:
        tiny_onnx.write_qdq(source, scheme, float_gemm=float_gemm)
    else:
        tiny_onnx.write_float(source)
    return backend().build(request_for(backend, source, folder / "built", scheme, **session))


# The audit


def test_macs_are_counted_as_by_hand() -> None:
    assert conv_macs([1, 8, 8, 8], [8, 3, 3, 3]) == MACS["conv"]
    assert conv_macs([1, 8, 8, 8], [8, 1, 3, 3]) == MACS["depthwise"]
    assert conv_macs([1, 8, 8, 8], [8, 1, 1, 3, 3]) == MACS["depthwise"]  # groups split off, as OpenVINO does
    assert matmul_macs([1, 5], [1, 8]) == MACS["gemm"]


def test_the_share_of_macs_is_unknown_when_one_layer_is() -> None:
    known = [ComputeLayer("a", True, 30), ComputeLayer("b", False, 10)]
    assert fusion_report("x", known, "s").int8_share_macs == pytest.approx(0.75)
    assert fusion_report("x", [*known, ComputeLayer("c", True)], "s").int8_share_macs is None
    assert fusion_report("x", known, "s").float_layers == ("b",)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_model_in_the_preferred_scheme_runs_wholly_in_int8(backend: type[Backend], tmp_path: Path) -> None:
    fusion = build(backend, tmp_path, backend().schemes()[0]).fusion
    assert fusion is not None
    assert (fusion.compute_layers, fusion.int8_layers, fusion.float_layers) == (3, 3, ())
    assert fusion.int8_share_macs == 1.0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_layer_left_in_float_is_named_and_its_macs_are_missing(backend: type[Backend], tmp_path: Path) -> None:
    fusion = build(backend, tmp_path, backend().schemes()[0], float_gemm=True).fusion
    assert fusion is not None
    assert (fusion.compute_layers, fusion.int8_layers) == (3, 2)
    (name,) = fusion.float_layers
    assert "logits" in name or "Gemm" in name
    expected = (MACS["conv"] + MACS["depthwise"]) / sum(MACS.values())
    assert fusion.int8_share_macs == pytest.approx(expected)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_layer_is_timed_slowest_first(backend: type[Backend], tmp_path: Path) -> None:
    built = build(backend, tmp_path, backend().schemes()[0])
    times = built.layer_times
    assert times is not None
    assert (times.runs, times.batch) == (30, 1)
    ms = [layer.ms for layer in times.layers]
    assert ms == sorted(ms, reverse=True)
    assert 0 < sum(ms) < 1000
    kinds = " ".join(layer.kind for layer in times.layers)
    assert kinds.count("QLinearConv") + kinds.count("Convolution") >= 2
    assert len({layer.name for layer in times.layers}) >= 3


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_float_model_has_no_int8(backend: type[Backend], tmp_path: Path) -> None:
    fusion = build(backend, tmp_path, None).fusion
    assert fusion is not None
    assert (fusion.compute_layers, fusion.int8_layers, fusion.int8_share_macs) == (3, 0, 0.0)


def test_signed_activations_do_not_fuse_in_onnx_runtime(tmp_path: Path) -> None:
    """Why the capability table does not list s8a8w for it: the ReLUs stay and keep the convolutions in float."""
    fusion = build(OnnxRuntimeBackend, tmp_path, "s8a8w").fusion
    assert fusion is not None
    assert fusion.int8_layers < fusion.compute_layers


# The capability table


def test_the_table_covers_every_backend_and_names_known_schemes() -> None:
    assert {row.backend for row in capability.TABLE} == set(BACKENDS) - {"pytorch"}
    for row in capability.TABLE:
        assert row.processor in capability.PROCESSORS
        assert set(row.schemes) <= set(SCHEMES)
        assert row.schemes
        assert row.evidence.startswith(("measured", "emulated", "documented"))
    pairs = [(row.backend, row.processor) for row in capability.TABLE]
    assert len(pairs) == len(set(pairs))


def test_processor_follows_the_dot_product_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_int8_dot", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert capability.processor() == "x86"
    assert OnnxRuntimeBackend().schemes()[0] == "u8a7w"
    monkeypatch.setattr(environment, "has_int8_dot", lambda: True)
    assert capability.processor() == "x86-dot"
    assert OpenVinoBackend().schemes()[0] == "u8a8w"
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert capability.processor() == "arm64"
    assert capability.schemes_for("onnxruntime", "no such processor") == ()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_listed_scheme_sums_exactly_at_the_largest_values(backend: type[Backend], tmp_path: Path) -> None:
    for scheme in backend().schemes():
        logits, exact = _extreme(backend, tmp_path, scheme)
        np.testing.assert_array_equal(logits, exact, err_msg=scheme)


saturates = pytest.mark.skipif(capability.processor() != "x86", reason="only x86 without VNNI or AMX saturates")


@saturates
def test_eight_bit_weights_saturate_in_openvino_so_the_engine_is_not_for_this_cpu(tmp_path: Path) -> None:
    """The evidence for the table's row on such CPUs: were this to change, the table should."""
    logits, exact = _extreme(OpenVinoBackend, tmp_path, "u8a8w")
    assert np.abs(logits - exact).max() > 0.1 * np.abs(exact).max()
    built = build(OpenVinoBackend, tmp_path / "b", "u8a8w")
    assert (built.engine, built.runs_here) == ("engine.xml", False)
    assert "does not compute u8a8w exactly" in built.reason
    assert build(OpenVinoBackend, tmp_path / "c", "u8a7w").runs_here


@saturates
def test_eight_bit_weights_saturate_in_onnx_runtime_without_the_option_its_session_sets(tmp_path: Path) -> None:
    import onnxruntime

    path, picture, exact = tiny_onnx.write_extreme(tmp_path / "a.onnx", "u8a8w")
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert np.abs(plain.run(None, {"input": picture})[0] - exact).max() > 0.1 * np.abs(exact).max()
    target = request_for(OnnxRuntimeBackend, path, tmp_path / "b", None).target
    with OnnxRuntimeBackend().open(path, target, precision="int8") as session:
        np.testing.assert_array_equal(session.infer(picture), exact)
        assert session.describe()["options"] == {"session.x64quantprecision": "1"}
    seven, _, _ = tiny_onnx.write_extreme(tmp_path / "c.onnx", "u8a7w")
    with OnnxRuntimeBackend().open(seven, target, precision="int8") as session:
        assert "options" not in session.describe()


def _extreme(backend: type[Backend], folder: Path, scheme: str) -> tuple[np.ndarray, np.ndarray]:
    path, picture, exact = tiny_onnx.write_extreme(folder / f"{scheme}.onnx", scheme)
    request = request_for(backend, path, folder / scheme, scheme)
    built = backend().build(request)
    assert built.engine is not None
    assert built.fusion is not None
    assert built.fusion.int8_share == 1.0
    with backend().open(request.folder / built.engine, request.target, precision="int8") as session:
        return session.infer(picture), exact


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_threads_are_the_callers_else_the_targets_else_every_core(
    backend: type[Backend], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = allotment.usable_cores() if backend is OpenVinoBackend else 2  # which takes no more than there are
    monkeypatch.setattr(allotment, "usable_cores", lambda: 2)
    built = build(backend, tmp_path, None)
    assert built.engine is not None
    for asked, stated, runs in ((1, 2, 1), (0, 1, 1), (0, 0, 2), (0, 4, 2)):
        target = request_for(backend, tmp_path, tmp_path / "built", None, threads=stated).target
        with backend().open(tmp_path / "built" / built.engine, target, precision="fp32", threads=asked) as session:
            assert session.describe()["threads"] == min(runs, there)


# ONNX Runtime


def test_both_onnxruntime_packages_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeopt.backends.onnxruntime._installed", lambda package: True)
    found = OnnxRuntimeBackend().availability()
    assert not found.ok
    assert "both installed" in found.reason
    assert found.install.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_an_absent_provider_is_an_error_and_not_a_fallback(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no CUDAExecutionProvider, only .*CPUExecutionProvider"):
        build(OnnxRuntimeBackend, tmp_path, None, provider="CUDAExecutionProvider")


def test_a_provider_that_falls_back_is_an_error_with_a_mocked_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The -gpu wheel on a machine without a GPU lists CUDA and then runs on the CPU; that wheel cannot be here."""
    import onnxruntime

    fallen = types.SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *arguments, **options: fallen)
    with pytest.raises(BackendError, match="asked for CUDAExecutionProvider, ONNX Runtime took CPUExecutionProvider"):
        build(OnnxRuntimeBackend, tmp_path, None, provider="CUDAExecutionProvider")


def test_onnxruntime_keeps_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    built = build(OnnxRuntimeBackend, tmp_path, "u8a7w")
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["engine.onnx"] == list(built.files)
    assert (tmp_path / "built" / "engine.onnx").read_bytes() == (tmp_path / "source.onnx").read_bytes()


def test_float16_is_not_said_of_a_file_in_float32(tmp_path: Path) -> None:
    source = tiny_onnx.write_float(tmp_path / "a.onnx")
    with pytest.raises(BackendError, match=r"a\.onnx has no float16 weights"):
        OnnxRuntimeBackend().build(request_for(OnnxRuntimeBackend, source, tmp_path / "b", None, precision="fp16"))


def test_a_product_that_onnx_runtime_fuses_a_scale_into_is_counted(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(768, tiny_onnx.CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"], name="product"),
        helper.make_node("Mul", ["product", "half"], ["logits"], name="scaled"),
    ]
    graph = helper.make_graph(
        nodes,
        "scaled",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *tiny_onnx.SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", tiny_onnx.CLASSES])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(0.5), "half")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(tmp_path / "a.onnx"))
    built = OnnxRuntimeBackend().build(request_for(OnnxRuntimeBackend, tmp_path / "a.onnx", tmp_path / "built", None))
    assert built.layer_times is not None
    assert "FusedMatMul" in {layer.kind for layer in built.layer_times.layers}
    assert built.fusion is not None
    assert (built.fusion.compute_layers, built.fusion.int8_share_macs) == (1, 0.0)


# OpenVINO


def test_openvino_answers_as_the_onnx_it_was_built_from(tmp_path: Path) -> None:
    import openvino

    built = build(OpenVinoBackend, tmp_path, "u8a7w")
    folder = tmp_path / "built"
    assert sorted(path.name for path in folder.iterdir()) == sorted(built.files)
    batch = np.random.default_rng(0).normal(size=(1, *tiny_onnx.SHAPE)).astype(np.float32)
    core = openvino.Core()
    direct = core.compile_model(core.read_model(str(tmp_path / "source.onnx")), "CPU")(batch)[0]
    target = request_for(OpenVinoBackend, tmp_path, folder, None).target
    with OpenVinoBackend().open(folder / "engine.xml", target, precision="int8") as session:
        np.testing.assert_array_equal(session.infer(batch), direct)


@pytest.mark.parametrize("channels", [8, 16, 24, 40, 56])
def test_strided_pointwise_convolutions_answer_the_same_on_two_threads(channels: int, tmp_path: Path) -> None:
    """oneDNN's own kernel races for odd multiples of 8 channels: see backends/openvino_passes.py."""
    path = tiny_onnx.write_strided_pointwise(tmp_path / "model.onnx", channels)
    request = request_for(OpenVinoBackend, path, tmp_path / "built", "u8a7w")
    built = OpenVinoBackend().build(request)
    assert built.fusion is not None
    assert built.fusion.int8_share == 1.0
    pictures = np.random.default_rng(0).normal(size=(8, *tiny_onnx.SHAPE)).astype(np.float32)
    answers = []
    for threads in (1, 2):
        with OpenVinoBackend().open(
            request.folder / str(built.engine), request.target, precision="int8", threads=threads
        ) as session:
            answers += [session.infer(pictures) for _ in range(20)]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def int8_gemm(second: str) -> Any:
    """(N, 48) in int8 to 10 classes; ``second`` is what is added: a bias, another branch of (N, 10), or nothing."""
    import openvino
    import openvino.opset13 as ops

    rng = np.random.default_rng(0)
    x = ops.parameter([-1, 48], np.float32, name="input")
    bounds = [np.float32(bound) for bound in (0.0, 2.55, 0.0, 2.55)]
    quantized = ops.fake_quantize(x, *bounds, levels=256)
    codes = ops.constant(rng.integers(-63, 64, (10, 48)).astype(np.int8))
    scale = ops.constant(rng.uniform(0.001, 0.01, (10, 1)).astype(np.float32))
    answer = ops.matmul(quantized, ops.multiply(ops.convert(codes, "f32"), scale), False, True)
    answer.set_friendly_name("classifier")
    if second == "bias":
        answer = ops.add(answer, ops.constant(rng.normal(size=10).astype(np.float32)))
    elif second == "branch":
        answer = ops.add(answer, ops.reduce_sum(x, 1, keep_dims=True))
    answer.set_friendly_name("last")
    answer.output(0).set_names({"logits"})
    return openvino.Model([answer], [x])


@pytest.mark.parametrize("second", ["bias", "branch", "nothing"])
def test_an_int8_classifier_is_a_convolution_and_answers_the_same(second: str) -> None:
    """oneDNN's int8 gemm on AVX2 takes four times what a float one does: see backends/openvino_passes.py."""
    import openvino

    asked, prepared = int8_gemm(second), int8_gemm(second)
    openvino_passes.prepare(prepared)
    kinds = [node.get_type_name() for node in prepared.get_ordered_ops()]
    assert kinds.count("Convolution") == 1
    assert "MatMul" not in kinds
    assert prepared.output(0).get_names() == {"logits"}
    pictures = np.random.default_rng(1).uniform(0, 2.55, (3, 48)).astype(np.float32)
    in_float32 = {"INFERENCE_PRECISION_HINT": "f32"}  # a CPU with bf16 would round what is not int8 to that
    wanted, found = (openvino.Core().compile_model(one, "CPU", in_float32)(pictures)[0] for one in (asked, prepared))
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_same_file_gives_the_same_openvino_engine(tmp_path: Path) -> None:
    hashes = set()
    for name in ("first", "second"):
        build(OpenVinoBackend, tmp_path / name, "u8a7w")
        hashes.add((tmp_path / name / "built/engine.xml").read_bytes())
    assert len(hashes) == 1


def test_openvino_float_weights_are_not_rounded_to_half(tmp_path: Path) -> None:
    build(OpenVinoBackend, tmp_path, None)
    stored = (tmp_path / "built" / "engine.bin").read_bytes()
    assert tiny_onnx.weights()["depthwise"].tobytes() in stored


def test_openvino_runs_float32_in_float32_and_says_so(tmp_path: Path) -> None:
    build(OpenVinoBackend, tmp_path, None)
    target = request_for(OpenVinoBackend, tmp_path, tmp_path / "built", None).target
    with OpenVinoBackend().open(tmp_path / "built" / "engine.xml", target, precision="fp32", threads=1) as session:
        stated = session.describe()
    assert (stated["precision_hint"], stated["threads"], stated["device"]) == ("f32", 1, "CPU")


def test_openvino_refuses_a_precision_the_cpu_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeopt.backends.openvino._capabilities", lambda device: ("FP32", "INT8"))
    assert OpenVinoBackend().float_baselines() == ("fp32",)
    source = tiny_onnx.write_float(tmp_path / "a.onnx")
    with pytest.raises(BackendError, match="does not compute in bf16"):
        OpenVinoBackend().build(request_for(OpenVinoBackend, source, tmp_path / "b", None, precision="bf16"))
    monkeypatch.setattr("edgeopt.backends.openvino._capabilities", lambda device: ("FP32", "BF16"))
    assert OpenVinoBackend().float_baselines() == ("fp32", "bf16")


def test_openvinos_baselines_are_those_of_the_targets_device_with_planted_capabilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stated = {"CPU": ("FP32", "BF16", "INT8"), "GPU": ("FP32", "FP16", "INT8"), "NPU": ("FP16", "INT8")}
    monkeypatch.setattr(openvino_backend, "_capabilities", lambda device: stated.get(device, ()))
    found = {}
    for device in ("CPU", "GPU", "NPU", "GPU.7"):
        target = Target(schema=1, title="t", backend="openvino", session=SessionOptions(device=device))
        found[device] = OpenVinoBackend().baselines_on(target)
    assert found == {"CPU": ("fp32", "bf16"), "GPU": ("fp32", "fp16"), "NPU": ("fp16",), "GPU.7": ("fp32",)}


def test_the_scheme_made_first_for_a_target_is_that_of_its_device_not_of_this_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU is one without dot products, by name only."""
    from edgeopt.stages.compress import _schemes

    monkeypatch.setattr(openvino_backend, "processor", lambda: "x86")
    board = tmp_path / "board.toml"
    board.write_text('schema = 1\ntitle = "an Intel GPU"\nbackend = "openvino"\nsession = { device = "GPU" }\n')
    best = capability.schemes_for("openvino", "intel-gpu")[0]
    assert best != OpenVinoBackend().schemes()[0]
    assert _schemes(CompressConfig(), [str(board)]) == (best,)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_device_of_fixed_shapes_is_fed_in_the_engines_batch_with_the_cpu_for_one(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = np.random.default_rng(0).normal(size=(6, *tiny_onnx.SHAPE)).astype(np.float32)
    engine = tmp_path / "built" / str(build(OpenVinoBackend, tmp_path, None).engine)
    target = Target(schema=1, title="t", backend="openvino", batch=batch)
    with OpenVinoBackend().open(engine, target, precision="fp32") as session:
        expected = session.infer(pictures)
    monkeypatch.setattr("edgeopt.backends.openvino_session.FIXED_SHAPES", frozenset({"CPU"}))
    compiled: list[int] = []
    compile_ = OpenVinoSession._compile
    monkeypatch.setattr(
        OpenVinoSession, "_compile", lambda self, size, *more: compiled.append(size) or compile_(self, size, *more)
    )
    with OpenVinoBackend().open(engine, target, precision="fp32") as session:
        np.testing.assert_allclose(session.infer(pictures), expected, atol=1e-5)
    assert set(compiled) == {batch}, "no model of any batch is compiled"


def test_openvino_leaves_a_device_that_is_not_here_to_the_device_and_opens_nothing_on_it(tmp_path: Path) -> None:
    built = build(OpenVinoBackend, tmp_path, None, device="GPU")
    assert (built.engine, built.runs_here) == (None, False)
    assert "no device GPU here, only CPU" in built.reason
    assert built.device_command.startswith("edgeopt build --target ")
    build(OpenVinoBackend, tmp_path / "cpu", None)
    elsewhere = Target(schema=1, title="t", backend="openvino", session=SessionOptions(device="GPU"))
    with pytest.raises(BackendError, match="no device GPU here, only CPU"):
        OpenVinoBackend().open(next((tmp_path / "cpu").rglob("engine.xml")), elsewhere, precision="fp32")


# TensorRT and TensorRT-RTX, as far as they go without a GPU

needs_rtx = pytest.mark.skipif(not TensorRtRtxBackend().can_build().ok, reason=TensorRtRtxBackend().can_build().reason)
needs_gpu = pytest.mark.skipif(gpu.gpu_count() == 0, reason="there is no NVIDIA GPU on this machine")
no_gpu = pytest.mark.skipif(gpu.gpu_count() > 0, reason="there is a GPU, so the build makes an engine")


@no_gpu
@needs_rtx
def test_tensorrt_without_a_gpu_checks_the_onnx_and_says_what_to_type(tmp_path: Path) -> None:
    built = build(TensorRtBackend, tmp_path, "s8a8w")
    assert built.engine is None
    assert "no NVIDIA GPU" in built.reason
    assert built.device_command == "edgeopt build --target here"
    assert str(built.details["checked_with"]).startswith("TensorRT-RTX ")
    table = json.loads((tmp_path / "built" / "layers.json").read_text())
    assert table["checked_with"] == built.details["checked_with"]
    assert sum(layer["int8"] for layer in table["layers"] if layer["kind"] in ("correlation", "gemm")) == 3
    assert built.fusion is not None
    assert (built.fusion.backend, built.fusion.int8_layers, built.fusion.compute_layers) == ("tensorrt_rtx", 3, 3)
    assert "not TensorRT's" in built.fusion.source


@no_gpu
def test_tensorrt_without_anything_still_writes_the_onnx_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = types.SimpleNamespace(ok=False, reason="tensorrt_rtx is not installed", install="pip install it")
    monkeypatch.setattr(TensorRtRtxBackend, "can_build", lambda self: absent)
    built = build(TensorRtBackend, tmp_path, "s8a8w")
    assert (built.engine, built.fusion, built.details["checked_with"]) == (None, None, None)
    assert "tensorrt_rtx is not installed" in built.reason
    assert (tmp_path / "built" / "model.onnx").is_file()


@pytest.mark.parametrize("backend", [TensorRtBackend, TensorRtRtxBackend])
@pytest.mark.parametrize(("scheme", "zero_point", "kind"), [("u8a8w", 0, "uint8"), ("s8a8w", 3, "shifted")])
def test_what_tensorrt_would_misread_is_refused(
    backend: type[Backend], scheme: str, zero_point: int, kind: str, tmp_path: Path
) -> None:
    if not backend().can_build().ok:
        pytest.skip(backend().can_build().reason)
    path = tiny_onnx.write_qdq(tmp_path / "wrong.onnx", scheme, zero_point=zero_point)
    request = request_for(backend, path, tmp_path / "built", "s8a8w", compute_capabilities=("SM86",))
    with pytest.raises(BackendError, match=f"not int8 with zero point 0 .* is {kind}"):
        backend().build(request)


@pytest.mark.parametrize("backend", [TensorRtBackend, TensorRtRtxBackend])
def test_tensorrt_refuses_schemes_it_does_not_run(backend: type[Backend], tmp_path: Path) -> None:
    if not backend().can_build().ok:
        pytest.skip(backend().can_build().reason)
    with pytest.raises(BackendError, match="does not run the scheme u8a8w"):
        build(backend, tmp_path, "u8a8w", compute_capabilities=("SM86",))


@needs_rtx
def test_the_parsers_warning_about_uint8_is_an_error(tmp_path: Path) -> None:
    import tensorrt_rtx

    path = tmp_path / "uint8.onnx"
    _write_uint8_without_shift(path)
    request = request_for(TensorRtRtxBackend, path, tmp_path / "built", "s8a8w")
    logger = trt_common.collecting_logger(tensorrt_rtx)
    with pytest.raises(BackendError, match="would take uint8 for int8") as caught:
        trt_common.build_engine(tensorrt_rtx, logger, request, capabilities=("SM86",))
    assert trt_common.concerns_types(caught.value), "TensorRT would answer as wrongly: no doubt, but an error"
    assert not trt_common.concerns_types(BackendError("TensorRT-RTX cannot read model.onnx: no importer for Foo"))


@no_gpu
@needs_rtx
def test_types_that_the_conformance_check_refuses_are_no_doubt_but_an_error(tmp_path: Path) -> None:
    """What TensorRT-RTX says of an operator may not hold for TensorRT; what it says of uint8 does."""
    _write_uint8_without_shift(tmp_path / "uint8.onnx")
    request = request_for(TensorRtBackend, tmp_path / "uint8.onnx", tmp_path / "built", None)
    with pytest.raises(BackendError, match="would take uint8 for int8"):
        TensorRtBackend().build(request)


def _write_uint8_without_shift(path: Path) -> None:
    constants = {
        "s": np.float32(0.02), "z": np.uint8(0), "w": np.ones((2, 3, 1, 1), np.int8),
        "ws": np.full(2, 0.01, np.float32), "wz": np.zeros(2, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["d", "wd"], ["logits"], name="conv"),
    ]
    graph = helper.make_graph(
        nodes,
        "uint8",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *tiny_onnx.SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2, 16, 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))


@needs_rtx
def test_rtx_builds_a_real_engine_ahead_of_time(tmp_path: Path) -> None:
    built = build(TensorRtRtxBackend, tmp_path, "s8a8w", compute_capabilities=("SM86", "SM89"))
    assert built.engine == "engine.rtx"
    engine = (tmp_path / "built" / "engine.rtx").read_bytes()
    assert len(engine) > 10_000
    assert re.findall(rb"sm\d+", engine) == [b"sm86", b"sm89"], "it names the GPUs that it is for"
    assert built.fusion is not None
    assert (built.fusion.int8_layers, built.fusion.compute_layers, built.fusion.int8_share_macs) == (3, 3, 1.0)
    assert "build log of TensorRT-RTX" in built.fusion.source


@no_gpu
@needs_rtx
def test_an_rtx_engine_without_a_gpu_says_why_it_cannot_be_opened(tmp_path: Path) -> None:
    built = build(TensorRtRtxBackend, tmp_path, "s8a8w", compute_capabilities=("SM86",))
    assert not built.runs_here
    assert built.engine is not None
    target = request_for(TensorRtRtxBackend, tmp_path, tmp_path / "built", None).target
    with pytest.raises(MissingBackendError, match="no NVIDIA GPU"):
        TensorRtRtxBackend().open(tmp_path / "built" / built.engine, target, precision="int8")


@needs_rtx
def test_rtx_lists_the_capabilities_it_knows(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot build for SM87") as caught:
        build(TensorRtRtxBackend, tmp_path, "s8a8w", compute_capabilities=("SM87",))
    assert "SM86" in str(caught.value.fix)


@no_gpu
@needs_rtx
def test_rtx_without_a_gpu_needs_the_target_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no GPU here to build for") as caught:
        build(TensorRtRtxBackend, tmp_path, "s8a8w")
    assert "compute_capabilities" in str(caught.value.fix)


@needs_rtx
def test_a_model_the_parser_refuses_is_a_backend_error_with_its_reason(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["input"], ["logits"], name="odd")
    graph = helper.make_graph(
        [node],
        "odd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *tiny_onnx.SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "odd.onnx"))
    request = request_for(
        TensorRtRtxBackend, tmp_path / "odd.onnx", tmp_path / "built", None, compute_capabilities=("SM86",)
    )
    with pytest.raises(BackendError, match=r"^TensorRT-RTX cannot read odd.onnx: .*NoSuchOperator") as caught:
        TensorRtRtxBackend().build(request)
    assert "upgrade TensorRT-RTX" in str(caught.value.fix)
    if gpu.gpu_count():
        return
    # For TensorRT, which is not here, that is a doubt: the file is for a device that may take it.
    built = TensorRtBackend().build(request_for(TensorRtBackend, tmp_path / "odd.onnx", tmp_path / "trt", None))
    assert built.engine is None
    assert built.device_command == "edgeopt build --target here"
    assert "TensorRT-RTX" in built.reason
    assert "which stands in for TensorRT, does not take model.onnx" in built.reason
    assert "NoSuchOperator" in str(built.details["doubt"])


INSPECTED_10 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to Conv_c1",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "input", "Dimensions": [1, 3, 16, 16], "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "x", "Dimensions": [1, 3, 16, 16], "Format/Datatype": "Four wide Int8 format"}],
        },
        {
            "Name": "conv_q + Conv_c1 + Relu_r1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Dimensions": [1, 3, 16, 16], "Format/Datatype": "Four wide Int8 format"}],
            "Outputs": [{"Name": "r1", "Dimensions": [1, 8, 8, 8], "Format/Datatype": "Four wide Int8 format"}],
            "Weights": {"Type": "Int8", "Count": 216},
            "Metadata": "[ONNX Layer: Conv_c1]\u001e[ONNX Layer: Relu_r1]",
        },
        {
            "Name": "Conv_c2",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "r1", "Dimensions": [1, 8, 8, 8], "Format/Datatype": "Channel major FP16 format"}],
            "Outputs": [{"Name": "r2", "Dimensions": [1, 8, 8, 8], "Format/Datatype": "Channel major FP16 format"}],
            "Metadata": "[ONNX Layer: Conv_c2]",
        },
    ],
    "Bindings": ["input", "logits"],
}
INSPECTED_11 = {
    "Layers": [
        {
            "Name": "Conv_c1_myl0_2",
            "LayerType": "correlation",
            "Inputs": [{"Name": "x", "Dimensions": [-1, 4, 16, 16], "Datatype": "Int8", "Format": "(NHWC)"}],
            "Constants": [{"Name": "w", "Dimensions": [8, 4, 3, 3], "Datatype": "Int8", "Format": "(NHWC)"}],
            "Outputs": [{"Name": "c1", "Dimensions": [-1, 8, 8, 8], "Datatype": "Half", "Format": "(NHWC)"}],
            "Metadata": "[ONNX Layer: Conv_c1]",
        },
        {
            "Name": "Conv_c2_myl0_4",
            "LayerType": "correlation",
            "Inputs": [{"Name": "r1", "Dimensions": [-1, 8, 8, 8], "Datatype": "Half", "Format": "(NHWC)"}],
            "Outputs": [{"Name": "c2", "Dimensions": [-1, 8, 8, 8], "Datatype": "Half", "Format": "(NHWC)"}],
            "Metadata": "[ONNX Layer: Conv_c2]",
        },
    ],
    "I/O Tensors": [],
}


@pytest.mark.parametrize("inspected", [INSPECTED_10, INSPECTED_11], ids=["TensorRT 10", "TensorRT 11"])
def test_the_inspectors_json_of_both_generations_is_audited_against_the_model(
    inspected: dict[str, object], tmp_path: Path
) -> None:
    """The documented wording of each generation, written by hand: no GPU here can make it."""
    model = read_onnx(tiny_onnx.write_qdq(tmp_path / "a.onnx", "s8a8w"))
    fusion = trt_table.audit("tensorrt", trt_table.from_inspector(json.dumps(inspected)), model, "inspector")
    # The gemm is in no row of its own: fused elsewhere, so it counts as float.
    assert (fusion.compute_layers, fusion.int8_layers, fusion.float_layers) == (3, 1, ("Conv_c2", "Gemm_gemm_out"))
    assert fusion.int8_share_macs == pytest.approx(MACS["conv"] / sum(MACS.values()))


def test_an_engine_without_detailed_layers_cannot_be_audited() -> None:
    with pytest.raises(BackendError, match="without detailed layer information"):
        trt_table.from_inspector(json.dumps({"Layers": ["conv + relu"]}))
    with pytest.raises(BackendError, match="no layer table"):
        trt_table.from_log(["nothing here"])


def test_device_memory_without_a_gpu_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "gpu_count", lambda: 0)
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        gpu.open_gpu()
    assert gpu.compute_capability() == ""


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", [gpu.CudaPythonGpu, gpu.PyCudaGpu])
def test_device_memory_brings_back_what_it_was_given(kind: Callable[[], gpu.Gpu]) -> None:
    memory = kind()
    there, back = memory.pinned((2, 3)), memory.pinned((2, 3))
    there[:] = np.arange(6).reshape(2, 3)
    address = memory.allocate(there.nbytes)
    memory.upload(address, there)
    memory.download(back, address)
    memory.synchronize()
    np.testing.assert_array_equal(back, there)
    memory.close()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", [TensorRtBackend, TensorRtRtxBackend])
def test_tensorrt_on_a_gpu_answers_as_onnx_runtime_and_splits_large_batches(
    backend: type[Backend], tmp_path: Path
) -> None:
    source = tiny_onnx.write_float(tmp_path / "a.onnx")
    batch = np.random.default_rng(0).normal(size=(3, *tiny_onnx.SHAPE)).astype(np.float32)
    answers = []
    for kind in (OnnxRuntimeBackend, backend):
        request = request_for(kind, source, tmp_path / kind.name, None)
        built = kind().build(request)
        assert built.engine is not None
        with kind().open(request.folder / built.engine, request.target, precision="fp32") as session:
            answers.append(session.infer(batch))
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-3, atol=1e-4)


# What a target's session states


def _session(backend: type[Backend], folder: Path, **options: object) -> tuple[Session, np.ndarray]:
    """An int8 engine opened as ``options`` say, and its answers for 6 pictures of noise."""
    built = build(backend, folder, backend().schemes()[0], **options)
    target = Target(schema=1, title="t", backend=backend.name, session=SessionOptions(**options))
    session = backend().open(folder / "built" / str(built.engine), target, precision="int8")
    pictures = np.random.default_rng(0).normal(size=(6, *tiny_onnx.SHAPE)).astype(np.float32)
    return session, session.infer(pictures)


def test_onnx_runtime_does_not_spin_and_loads_an_optimized_graph_when_told(tmp_path: Path) -> None:
    plain, expected = _session(OnnxRuntimeBackend, tmp_path / "plain")
    quiet, same = _session(OnnxRuntimeBackend, tmp_path / "quiet", spinning=False)
    assert "options" not in plain.describe()
    assert quiet.describe()["options"] == {"session.intra_op.allow_spinning": "0"}
    np.testing.assert_array_equal(same, expected)
    _, same = _session(OnnxRuntimeBackend, tmp_path / "optimized", optimized=True)
    np.testing.assert_array_equal(same, expected)
    operators = {node.op_type for node in read_onnx(tmp_path / "optimized/built/engine.onnx").nodes}
    assert "QLinearConv" in operators
    assert "Conv" not in operators


def test_onnx_runtime_does_not_round_the_weights_of_a_layer_left_in_float(tmp_path: Path) -> None:
    """By itself it does between int8 activations, with one scale for all channels."""
    source = tiny_onnx.write_qdq(tmp_path / "a.onnx", "u8a7w")
    model = onnx.load(source)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    stored["depthwise_q"].CopyFrom(numpy_helper.from_array(tiny_onnx.weights()["depthwise"], "depthwise_float"))
    for one in [node for node in model.graph.node if node.output[0] == "depthwise_dq"]:
        model.graph.node.remove(one)
    for node in model.graph.node:
        node.input[:] = ["depthwise_float" if name == "depthwise_dq" else name for name in node.input]
    onnx.save(model, source)
    built = OnnxRuntimeBackend().build(request_for(OnnxRuntimeBackend, source, tmp_path / "built", "u8a7w"))
    assert built.fusion is not None
    assert (built.fusion.int8_layers, built.fusion.compute_layers) == (2, 3)


def test_openvino_compiles_with_hint_streams_and_pinning_as_told(tmp_path: Path) -> None:
    plain, expected = _session(OpenVinoBackend, tmp_path / "plain")
    stated = plain.describe()
    assert (stated["hint"], stated["streams"]) == ("latency", 1)
    many, same = _session(OpenVinoBackend, tmp_path / "many", hint="throughput", streams=2, pinning=False)
    stated = many.describe()
    assert (stated["hint"], int(stated["streams"]), stated["pinning"]) == (
        "throughput",
        min(2, allotment.usable_cores()),
        False,
    )
    np.testing.assert_allclose(same, expected, atol=1e-5)  # through the queue, in order
    assert many._queue is not None, "several requests at once, not one large batch"
    auto, same = _session(OpenVinoBackend, tmp_path / "auto", device="AUTO:CPU", threads=1)
    stated = auto.describe()
    assert "CPU" in stated["device"]
    assert (stated["threads"], stated["streams"]) == (1, 1), "a target's threads hold for the CPU that AUTO takes"
    np.testing.assert_allclose(same, expected, atol=1e-5)


def test_an_optimized_graph_is_not_tied_to_the_cpu_that_built_it(tmp_path: Path) -> None:
    """ONNX Runtime's last level lays weights out for the vectors of the very CPU (com.microsoft.nchwc)."""
    built = build(OnnxRuntimeBackend, tmp_path, None, optimized=True)
    nodes = onnx.load(tmp_path / "built" / str(built.engine)).graph.node
    assert "FusedConv" in {node.op_type for node in nodes}
    assert {node.domain for node in nodes} <= {"", "com.microsoft"}


@pytest.mark.parametrize("optimized", [False, True])
def test_float_layers_are_called_as_in_the_file_whatever_onnxruntime_made_of_them(
    tmp_path: Path, optimized: bool
) -> None:
    """In its own layout, ``relu_nchwc`` was the name of the convolution that ONNX Runtime fused a Relu with."""
    built = build(OnnxRuntimeBackend, tmp_path, None, optimized=optimized)
    nodes = onnx.load(tmp_path / "built" / str(built.engine)).graph.node
    names = [node.name for node in nodes if node.op_type in ("Conv", "FusedConv", "Gemm", "FusedGemm")]
    assert built.fusion is not None
    assert built.layer_times is not None
    assert sorted(built.fusion.float_layers) == sorted(names)
    assert set(names) <= {layer.name for layer in built.layer_times.layers}


def test_openvino_keeps_compiled_models_in_the_users_cache_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _session(OpenVinoBackend, tmp_path / "plain")
    assert not (tmp_path / "cache").exists()
    _, expected = _session(OpenVinoBackend, tmp_path / "first", cache=True)
    blobs = list((tmp_path / "cache/edgeopt/openvino").glob("*.blob"))
    assert blobs
    _, same = _session(OpenVinoBackend, tmp_path / "first", cache=True)
    np.testing.assert_array_equal(same, expected)
    assert list((tmp_path / "cache/edgeopt/openvino").glob("*.blob")) == blobs


def test_a_session_key_that_the_backend_does_not_read_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"session.streams: not read by onnxruntime"):
        Target(schema=1, title="t", backend="onnxruntime", session=SessionOptions(streams=2))
    Target(schema=1, title="t", backend="somebody.elses", session=SessionOptions(streams=2))
