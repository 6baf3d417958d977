"""OpenVINO on devices that are not here: what their plugins tell is planted, by what their sources say."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_onnx
from onnx import TensorProto
from test_backends import MACS, build, request_for

from edgeopt.backends import openvino as openvino_backend
from edgeopt.backends import openvino_audit
from edgeopt.backends.bisection import expose
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.backends.openvino import OpenVinoBackend
from edgeopt.config import SessionOptions, Target
from edgeopt.errors import BackendError
from edgeopt.stages.built import Built


def _planted(built: Path, *, device: str, drop_weights: bool = True, nameless: bool = False) -> Any:
    """A compiled model that tells of its graph as the plugin of ``device`` does; the CPU's answers for the rest."""
    import openvino
    import openvino.opset13 as ops

    core = openvino.Core()
    model = core.read_model(str(built / "engine.xml"))
    model.reshape([2, *tiny_onnx.SHAPE])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    told = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        output = ops.parameter(node.output(0).get_shape(), np.float32) if node.get_output_size() else None
        if output is None or node.get_type_name() == "Result":
            continue
        made = ops.relu(output)  # a node of one input, as the GPU's convolutions are: constants are left out
        made.set_friendly_name(f"kernel:{node.get_friendly_name()}")
        for name, value in () if nameless else node.get_rt_info().items():
            made.get_rt_info()[name] = value.value
        told.append(made)
    parameters = [made.input_value(0).get_node() for made in told]
    graph = openvino.Model(told, parameters, "told")
    answers = {"EXECUTION_DEVICES": [device]}
    return types.SimpleNamespace(get_runtime_model=lambda: graph, get_property=answers.__getitem__), model


def test_a_gpu_that_leaves_weights_out_of_its_graph_is_audited_by_the_models_names_with_a_planted_graph(
    tmp_path: Path,
) -> None:
    build(OpenVinoBackend, tmp_path, OpenVinoBackend().schemes()[0], float_gemm=True)
    compiled, model = _planted(tmp_path / "built", device="GPU.0")
    fusion = openvino_audit.audit(compiled, model, 2)
    assert fusion is not None
    assert (fusion.compute_layers, fusion.int8_layers) == (3, 2)
    expected = (MACS["conv"] + MACS["depthwise"]) / sum(MACS.values())
    assert fusion.int8_share_macs == pytest.approx(expected)


def test_an_npu_that_names_no_layers_has_no_audit_instead_of_a_share_of_nothing_with_a_planted_graph(
    tmp_path: Path,
) -> None:
    build(OpenVinoBackend, tmp_path, OpenVinoBackend().schemes()[0])
    compiled, model = _planted(tmp_path / "built", device="NPU", nameless=True)
    assert openvino_audit.audit(compiled, model, 2) is None
    record = {"engine": "engine.xml", "precision": "int8", "fusion": None, "parity": None, "reason": ""}
    assert "what it runs in int8 is not known" in Built("npu", "int8", record, skipped=False).summary()


def test_attention_that_the_plugin_fuses_counts_and_leaves_the_share_of_the_macs_unknown_with_a_planted_graph(
    tmp_path: Path,
) -> None:
    build(OpenVinoBackend, tmp_path, OpenVinoBackend().schemes()[0])
    compiled, model = _planted(tmp_path / "built", device="CPU")
    kernels = [node for node in compiled.get_runtime_model().get_ordered_ops() if "layerType" in node.get_rt_info()]
    products = {"FullyConnected", "MatMul", "Convolution"}
    last = [node for node in kernels if node.get_rt_info()["layerType"].value in products][-1]
    for kind in ("ScaledDotProductAttention", "MHA"):
        last.get_rt_info()["layerType"] = kind
        last.get_rt_info()["runtimePrecision"] = "f32"
        fusion = openvino_audit.audit(compiled, model, 2)
        assert fusion is not None
        assert (fusion.compute_layers, fusion.int8_layers, fusion.int8_share_macs) == (3, 2, None), kind


def test_a_matrix_product_counts_its_rows_whichever_operand_is_transposed() -> None:
    import openvino
    import openvino.opset13 as ops

    tokens = ops.parameter([2, 7, 5], np.float32)
    product = ops.matmul(tokens, ops.constant(np.ones((2, 7, 11), np.float32)), True, False)
    product.set_friendly_name("product")
    assert openvino_audit._macs_by_name(openvino.Model([product], [tokens], "m")) == {"product": 2 * 5 * 7 * 11}


@pytest.mark.parametrize(
    ("device", "rest"), [("CPU", "f32"), ("GPU", "f16"), ("GPU.1", "f16"), ("NPU", "f16"), ("AUTO", "f32")]
)
def test_what_int8_leaves_over_is_computed_in_what_the_device_is_made_for(device: str, rest: str) -> None:
    target = Target(schema=1, title="t", backend="openvino", session=SessionOptions(device=device))
    settings = OpenVinoBackend().session_settings(Path("engine.xml"), target, "int8")
    assert settings["properties"]["INFERENCE_PRECISION_HINT"] == rest
    assert OpenVinoBackend().float_rest_on(target) == {"f16": "fp16", "f32": "fp32"}[rest]
    assert (
        OpenVinoBackend().session_settings(Path("engine.xml"), target, "fp32")["properties"]["INFERENCE_PRECISION_HINT"]
        == "f32"
    )


def test_float32_is_refused_on_a_device_without_it_with_planted_capabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_backend, "_capabilities", lambda device: ("FP16", "INT8", "EXPORT_IMPORT"))
    source = tiny_onnx.write_float(tmp_path / "a.onnx")
    with pytest.raises(BackendError, match="CPU does not compute in fp32 here") as caught:
        OpenVinoBackend().build(request_for(OpenVinoBackend, source, tmp_path / "b", None))
    assert caught.value.fix == "use precision fp16 or int8"


def test_layers_are_asked_of_a_device_of_fixed_shapes_in_the_batch_of_the_pictures_with_a_planted_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, shapes = openvino_backend.core(), []

    def compile_model(model: Any, device: str, properties: dict[str, str]) -> Any:
        shapes.append(model.input().get_partial_shape().to_string())
        return core.compile_model(model, "CPU", properties)

    stand_in = types.SimpleNamespace(read_model=core.read_model, compile_model=compile_model)
    monkeypatch.setattr(openvino_backend, "core", lambda: stand_in)
    onnx_path = tiny_onnx.write_float(tmp_path / "a.onnx")
    name = next(node.outputs[0] for node in read_onnx(onnx_path).compute_nodes())
    exposed = tmp_path / "exposed.onnx"
    expose(onnx_path, exposed, name, TensorProto.FLOAT)
    pictures = np.zeros((3, *tiny_onnx.SHAPE), np.float32)
    npu = Target(schema=1, title="t", backend="openvino", session=SessionOptions(device="NPU"))
    found = OpenVinoBackend().tap(exposed, onnx_path, name, npu, "fp32", pictures)
    assert found is not None
    assert shapes == ["[3,3,16,16]"]
