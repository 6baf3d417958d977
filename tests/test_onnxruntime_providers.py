"""ONNX Runtime's providers: what they do not take is not run on the CPU under their name; options of those not here."""

from __future__ import annotations

import platform
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_onnx
from test_backends import build

from edgeopt import environment
from edgeopt.backends import capability, onnxruntime_audit, onnxruntime_session
from edgeopt.backends.onnxruntime import OnnxRuntimeBackend
from edgeopt.config import SessionOptions, Target
from edgeopt.errors import BackendError
from edgeopt.packaging.contents import requirements
from edgeopt.stages.package import _on_cpu

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def test_a_provider_that_takes_no_layer_is_an_error_and_not_the_cpu(tmp_path: Path) -> None:
    """Of a real one: Azure's is in every wheel, opens a session that bears its name, and leaves all to the CPU."""
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime was built without it")
    with pytest.raises(BackendError, match=r"AzureExecutionProvider takes no layer of engine\.onnx"):
        build(OnnxRuntimeBackend, tmp_path, None, provider="AzureExecutionProvider")


def _event(name: str, operator: str, provider: str) -> dict[str, Any]:
    shapes = {"input_type_shape": [{"float": [1, 8]}], "output_type_shape": [{"float": [1, 5]}]}
    return {
        "cat": "Node", "name": f"{name}_kernel_time", "dur": 1,
        "args": {"op_name": operator, "provider": provider, **shapes},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "events", "named", "on_cpu"),
    [
        (CUDA, [("a", "Gemm", CUDA), ("b", "Gemm", CPU), ("s", "Shape", CPU)], 2, ("b",)),
        (TENSORRT, [("TRTKernel_graph_0", "TRTKernel_graph_0", TENSORRT), ("b", "Gemm", CPU)], None, ("b",)),
        (CPU, [("a", "Gemm", CPU)], 1, ()),
    ],
)
def test_layers_that_a_provider_leaves_to_the_cpu_are_named_with_a_planted_profile(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    wanted: str,
    events: list[tuple[str, str, str]],
    named: int | None,
    on_cpu: tuple[str, ...],
) -> None:
    monkeypatch.setattr(onnxruntime_audit, "_profile", lambda *_: [_event(*one) for one in events])
    engine = tiny_onnx.write_float(tmp_path / "a.onnx")
    found = onnxruntime_audit.executed(engine, wanted, np.zeros((1, *tiny_onnx.SHAPE), np.float32))
    assert (found.fusion and found.fusion.compute_layers) == named, "a provider with kernels of its own has no audit"
    assert found.on_cpu == on_cpu


def test_float32_is_float32_on_cuda_and_tensorrt_is_told_of_int8_and_keeps_its_timings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain, quantized = tiny_onnx.write_float(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    tiny_onnx.write_qdq(quantized, "s8a8w")
    assert onnxruntime_session.providers(CUDA, plain) == [(CUDA, {"use_tf32": "0"})]
    assert onnxruntime_session.providers(CPU, plain) == [(CPU, {})]
    for engine, int8 in ((plain, False), (quantized, True)):
        (name, options), (then, _) = onnxruntime_session.providers(TENSORRT, engine)
        assert (name, then) == (TENSORRT, CUDA)
        assert (options["trt_int8_enable"], options["trt_fp16_enable"]) == (int8, int8)
        assert Path(options["trt_timing_cache_path"]).is_dir()


@pytest.mark.parametrize(
    ("dot", "scheme", "asked"), [(False, "u8a8w", True), (False, "u8a7w", False), (True, "u8a8w", False)]
)
def test_exact_sums_are_asked_for_where_they_would_saturate_with_the_flag_planted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dot: bool, scheme: str, asked: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(environment, "has_int8_dot", lambda: dot)
    engine = tiny_onnx.write_qdq(tmp_path / "a.onnx", scheme)
    entry = {"session.x64quantprecision": "1"}
    quiet = {"session.intra_op.allow_spinning": "0"}
    target = Target(schema=1, title="t", backend="onnxruntime", session=SessionOptions(spinning=False))
    with OnnxRuntimeBackend().open(engine, target, precision="int8") as session:
        assert session.describe()["options"] == {**quiet, **(entry if asked else {})}
    packaged = OnnxRuntimeBackend().session_settings(engine, target, "int8")
    assert packaged["entries"] == {**quiet, **(entry if scheme == "u8a8w" else {})}, "for whatever CPU it is copied to"


def test_schemes_baselines_and_packages_are_those_of_the_targets_provider(tmp_path: Path) -> None:
    backend = OnnxRuntimeBackend()
    quantized = tmp_path / "b.onnx"
    tiny_onnx.write_qdq(quantized, "s8a8w")
    targets = {
        name: Target(schema=1, title="t", backend="onnxruntime", session=SessionOptions(provider=name))
        for name in (CPU, CUDA, TENSORRT)
    }
    assert [backend.schemes_on(one)[0] for one in targets.values()] == [backend.schemes()[0], "s8a8w", "s8a8w"]
    assert capability.schemes_for("onnxruntime", "nvidia") == ("s8a8w",), "zero points other than 0 are refused"
    assert [backend.baselines_on(one) for one in targets.values()] == [("fp32",), ("fp32", "fp16"), ("fp32", "fp16")]
    assert [backend.float_rest_on(one) for one in targets.values()] == ["fp32", "fp32", "fp16"]
    assert [backend.extra_for(one) for one in targets.values()] == ["onnxruntime", "gpu", "gpu"]
    assert requirements("gpu").splitlines()[-1].startswith("onnxruntime-gpu")
    settings = [backend.session_settings(quantized, one, "int8") for one in targets.values()]
    assert [_on_cpu(one) for one in settings] == [True, False, False]
    assert settings[2]["providers"][0] == [TENSORRT, {"trt_int8_enable": True, "trt_fp16_enable": True}]


def test_what_the_runtime_prints_of_missing_cuda_stays_off_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = types.SimpleNamespace(preload_dlls=lambda *, msvc: print("Failed to load libcudnn"))
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    onnxruntime_session.preload()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "Failed to load libcudnn\n")
