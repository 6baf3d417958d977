"""Exported files: they answer as the model, keep their scheme's promises, and the runtimes fuse all of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_onnx
import torch
from numpy.random import default_rng
from onnx import numpy_helper
from torch import Tensor, nn

from edgeopt.compress.quantize import named_quantizers, quantize
from edgeopt.errors import LoweringError
from edgeopt.export import qdq
from edgeopt.export.check import check_qdq
from edgeopt.export.float_onnx import export_float
from edgeopt.export.folding import CLEAN, FOLD_PADS
from edgeopt.export.noise import bias_noise, float_noise, half_noise
from edgeopt.export.passes import GraphPass, absent, run_passes
from edgeopt.export.precision import to_fp16
from edgeopt.export.qdq import QDQSummary, export_qdq
from edgeopt.preprocess import PreprocessSpec
from edgeopt.schemes import SCHEMES, get_scheme
from edgeopt.stages import export as export_stage
from edgeopt.stages.export import _plain_runner, noise_floor, write_half
from tests.tiny_torch import TinyNet, calibration, tiny_net

SHAPE = (3, 32, 32)
# Float sums in another order flip a rounding here and there; one flip moves a logit by one step of one activation.
TIES = 0.02


@pytest.fixture(scope="module")
def net() -> TinyNet:
    return tiny_net()


@pytest.fixture(scope="module")
def float_file(net: TinyNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    export_float(net, path, input_shape=SHAPE)
    return path


@pytest.fixture(scope="module")
def exported(net: TinyNet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, Path, QDQSummary]]:
    files = {}
    for name, scheme in SCHEMES.items():
        model = quantize(net, calibration(), scheme=scheme)
        path = tmp_path_factory.mktemp(name) / "model.onnx"
        files[name] = (model, path, export_qdq(model, path, input_shape=SHAPE, scheme=scheme))
    return files


def run(path: Path, x: Tensor, *, optimized: Path | None = None, plain: bool = False) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": x.numpy()})[0])


def answers(model: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(x).numpy())


def counts(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).mean() / expected.std())


def test_float_file_answers_as_the_model_at_every_batch_size(net: TinyNet, float_file: Path) -> None:
    for size in (1, 2, 7):
        x = torch.cat(calibration())[:size]
        np.testing.assert_allclose(run(float_file, x), answers(net, x), rtol=1e-4, atol=1e-5)


def test_float_file_is_folded_named_and_says_nothing_of_the_machine(float_file: Path) -> None:
    assert not {"BatchNormalization", "Identity", "Dropout", "Pad", "Constant", "ReduceMean"} & set(counts(float_file))
    names = [node.name for node in onnx.load(float_file).graph.node if node.op_type in ("Conv", "Gemm")]
    assert names == ["stem", "expand", "depthwise", "project", "wide", "head"]
    raw = float_file.read_bytes()
    assert b"/work" not in raw
    assert b"site-packages" not in raw
    assert b".py" not in raw
    model = onnx.load(float_file, load_external_data=False)
    assert model.opset_import[0].version <= 20, "TensorRT 10.3 reads no later one"
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert list(float_file.parent.iterdir()) == [float_file], "no temporary file is left"


@pytest.mark.parametrize("name", SCHEMES)
def test_qdq_file_equals_the_simulation_up_to_ties(exported: Any, name: str) -> None:
    model, path, summary = exported[name]
    assert summary == QDQSummary(compute_layers=6, quantized_layers=6, float_layers=())
    for size in (1, 24):
        x = torch.cat(calibration())[:size]
        assert difference(run(path, x, plain=True), answers(model, x)) < TIES


def test_the_noise_floor_knows_what_rounding_the_biases_makes(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training never saw biases in int32 codes; the file differs by them from what was trained."""
    x = torch.cat(calibration())
    noise = {name: bias_noise(path, x.numpy(), _plain_runner) for name, (_, path, _) in exported.items()}
    assert [name for name, value in noise.items() if value == 0] == ["s8a8w"], "its biases stay float"
    model, path, _ = exported["u8a8w"]
    with monkeypatch.context() as patched:
        patched.setattr(qdq, "QUANTIZE_BIASES", GraphPass("nothing", lambda graph: None))
        export_qdq(model, tmp_path / "float-biases.onnx", input_shape=SHAPE, scheme=get_scheme("u8a8w"))
    rounded = difference(run(path, x, plain=True), run(tmp_path / "float-biases.onnx", x, plain=True))
    assert rounded / 3 < noise["u8a8w"] < 3 * rounded
    assert noise["u8a8w"] > 3 * float_noise(model, x.numpy())
    assert noise_floor(model, path, _Pictures(x), PreprocessSpec(size=(32, 32))) == noise["u8a8w"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_noise_is_what_half_precision_makes_of_the_answers(net: TinyNet, dtype: torch.dtype) -> None:
    x = torch.cat(calibration())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    noise = half_noise(net, x.numpy(), dtype)
    expected = answers(net, x)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        cast = difference(net(x).float().numpy(), expected)
    assert cast / 3 < noise < 3 * cast
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_network_whose_numbers_float16_does_not_reach_has_no_noise_of_it(net: TinyNet) -> None:
    """MobileOne of one epoch answers with logits of a million; NaN is no JSON."""
    large = copy.deepcopy(net)
    with torch.no_grad():
        next(one for one in large.modules() if isinstance(one, nn.BatchNorm2d)).weight *= 1e6
    noises = export_stage.half_noises(large, _Pictures(torch.cat(calibration())), PreprocessSpec(size=(32, 32)))
    assert list(noises) == ["bf16"]


class _Pictures:
    """A set of one batch."""

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def batches(self, spec: PreprocessSpec, size: int) -> Iterator[np.ndarray]:
        yield self._x.numpy()


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_are_int8_within_the_schemes_bounds(exported: Any, name: str) -> None:
    model, path, _ = exported[name]
    graph = onnx.load(path).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    largest = [
        int(np.abs(tensors[node.input[0]].astype(int)).max())
        for node in graph.node
        if node.op_type == "DequantizeLinear" and tensors.get(node.input[0], np.zeros(0)).dtype == np.int8
    ]
    assert len(largest) == 6
    assert set(largest) == {get_scheme(name).weight_max}
    assert all(array.size < 200 for array in tensors.values() if array.dtype == np.float32), "no float weights"
    assert not {"BatchNormalization", "Clip", "Pad", "Identity", "Cast", "Sub"} & set(counts(path))
    assert ("Relu" in counts(path)) == get_scheme(name).activation_symmetric, "uint8 with zero point 0 cuts at 0 itself"
    assert len(named_quantizers(model)) > 5


@pytest.mark.parametrize("name", ["u8a8w", "u8a7w"])
def test_onnx_runtime_fuses_everything(exported: Any, name: str, tmp_path: Path) -> None:
    model, path, _ = exported[name]
    x = torch.cat(calibration())
    logits = run(path, x, optimized=tmp_path / "optimized.onnx")
    fused = counts(tmp_path / "optimized.onnx")
    assert fused["QLinearConv"] == 5
    assert fused["QGemm"] == fused["QLinearAdd"] == fused["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "Gemm", "Add", "DequantizeLinear"} & set(fused)
    assert fused["QuantizeLinear"] == 1, "the input"
    if name == "u8a7w":  # 8-bit weights saturate on CPUs without VNNI: no promise about numbers there
        assert difference(logits, answers(model, x)) < TIES


@pytest.mark.parametrize("name", ["u8a8w", "u8a7w"])
def test_openvino_runs_every_layer_in_int8(exported: Any, name: str) -> None:
    ov = pytest.importorskip("openvino")
    model, path, _ = exported[name]
    x = torch.cat(calibration())
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    layers = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        layers[info["layerType"].astype(str), info["runtimePrecision"].astype(str)] += 1
    compute = {key: n for key, n in layers.items() if key[0] in ("Convolution", "FullyConnected", "MatMul")}
    assert compute == {("Convolution", "u8"): 5, ("FullyConnected", "u8"): 1}
    if name == "u8a7w":
        assert difference(compiled(x.numpy())[0], answers(model, x)) < TIES


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["u8a8w", "u8a7w"])
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv2_100"])
def test_real_models_are_int8_throughout_on_both_cpu_runtimes(name: str, scheme: str, tmp_path: Path) -> None:
    timm, ov = pytest.importorskip("timm"), pytest.importorskip("openvino")
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False, num_classes=10).eval()
    model = quantize(net, [torch.randn(4, 3, 64, 64)], scheme=get_scheme(scheme))
    path, convolutions = tmp_path / "model.onnx", sum(isinstance(module, nn.Conv2d) for module in net.modules())
    summary = export_qdq(model, path, input_shape=(3, 64, 64), scheme=get_scheme(scheme))
    assert summary == QDQSummary(convolutions + 1, convolutions + 1, ())
    run(path, torch.zeros(1, 3, 64, 64), optimized=tmp_path / "optimized.onnx")
    fused = counts(tmp_path / "optimized.onnx")
    assert (fused["QLinearConv"], fused["QGemm"], fused["QLinearGlobalAveragePool"]) == (convolutions, 1, 1)
    assert not {"Conv", "Gemm", "Add", "DequantizeLinear", "Relu", "Clip"} & set(fused)
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = Counter((info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos)
    compute = {key: n for key, n in kinds.items() if key[0] in ("Convolution", "FullyConnected", "MatMul")}
    assert compute == {("Convolution", "u8"): convolutions, ("FullyConnected", "u8"): 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_networks_that_are_partly_float_name_what_is(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"img_size": 64} if name.startswith("vit") else {}
    net = timm.create_model(name, pretrained=False, num_classes=10, **sizes).eval()
    model = quantize(net, [torch.randn(4, 3, 64, 64)], scheme=get_scheme("u8a7w"))
    path = tmp_path / "model.onnx"
    summary = export_qdq(model, path, input_shape=(3, 64, 64), scheme=get_scheme("u8a7w"))
    assert summary.quantized_layers > summary.compute_layers / 2
    assert len(summary.float_layers) == summary.compute_layers - summary.quantized_layers > 0
    marks = ("attention", "MatMul", "se.conv")
    assert all(any(mark in layer for mark in marks) for layer in summary.float_layers), summary.float_layers
    x = torch.randn(3, 3, 64, 64)
    assert difference(run(path, x, plain=True), answers(model, x)) < 0.1


def test_tensorrt_rtx_takes_the_symmetric_file_without_warnings(exported: Any, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    _, path, _ = exported["s8a8w"]
    to_fp16(path, tmp_path / "half.onnx")

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            about_loggers = "createInferBuilder differs" in message  # another test made a builder before
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING) and not about_loggers:
                self.lines.append(message)

    for file in (path, tmp_path / "half.onnx"):
        log = Log()
        network = trt.Builder(log).create_network(0)
        parser = trt.OnnxParser(network, log)
        assert parser.parse_from_file(str(file)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
        assert log.lines == []
        assert network.get_input(0).dtype == network.get_output(0).dtype == trt.DataType.FLOAT


def test_float16_files_keep_float32_ends_and_answer_alike(float_file: Path, exported: Any, tmp_path: Path) -> None:
    x = torch.cat(calibration())
    for source, tolerance in ((float_file, 0.005), (exported["s8a8w"][1], 0.05)):
        half = tmp_path / source.parent.name / "half.onnx"
        to_fp16(source, half)
        assert difference(run(half, x, plain=True), run(source, x, plain=True)) < tolerance
        model = onnx.load(half)
        onnx.checker.check_model(model, full_check=True)
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        assert onnx.TensorProto.FLOAT not in kinds
        ends = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
        assert ends == {onnx.TensorProto.FLOAT}


def test_float16_refuses_what_does_not_fit(float_file: Path, tmp_path: Path) -> None:
    model = onnx.load(float_file)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(4, 1e6, np.float32), "head.bias"))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(LoweringError, match=r"head\.bias holds 1e\+06"):
        to_fp16(tmp_path / "large.onnx", tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()


def _masked(path: Path) -> Path:
    """Resize (its scales are float32 by ONNX), ConstantOfShape, Range (which has no float16) and a mask of -3.4e38."""
    least = float(np.finfo(np.float32).min)
    given = {"scales": np.array([1, 1, 2, 2], np.float32), "least": np.float32(least), "zero": np.float32(0)}
    given |= {"four": np.float32(4), "one": np.float32(1), "axes": np.array([2, 3]), "shape": np.array([1, 4])}
    given |= {"weight": default_rng(0).normal(0, 1, (3, 4)).astype(np.float32)}
    make, node = onnx.helper, onnx.helper.make_node
    ones = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [
        node("Resize", ["input", "", "scales"], ["large"], "resize", mode="nearest"),
        node("ReduceMean", ["large", "axes"], ["pooled"], "mean", keepdims=0),
        node("MatMul", ["pooled", "weight"], ["scores"], "scores"),
        node("ConstantOfShape", ["shape"], ["ones"], "ones", value=ones),
        node("ConstantOfShape", ["shape"], ["zeros"], "zeros"),
        node("Range", ["zero", "four", "one"], ["places"], "places"),
        node("Less", ["places", "one"], ["first"], "first"),
        node("Where", ["first", "least", "scores"], ["masked"], "where"),
        node("Softmax", ["masked"], ["shares"], "softmax"),
        node("Add", ["shares", "ones"], ["more"], "add"),
        node("Add", ["more", "zeros"], ["moved"], "add_zeros"),
        node("Add", ["moved", "places"], ["logits"], "add_places"),
    ]
    graph = make.make_graph(
        nodes,
        "masked",
        [make.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [make.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in given.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def test_float16_keeps_what_onnx_wants_in_float32_and_cuts_a_masks_infinity(tmp_path: Path) -> None:
    source = _masked(tmp_path / "model.onnx")
    to_fp16(source, tmp_path / "half.onnx")
    model = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds["scales"] == onnx.TensorProto.FLOAT
    assert kinds["weight"] == kinds["least"] == onnx.TensorProto.FLOAT16
    x = torch.from_numpy(default_rng(1).normal(0, 1, (5, 3, 8, 8)).astype(np.float32))
    assert np.abs(run(tmp_path / "half.onnx", x, plain=True) - run(source, x, plain=True)).max() < 0.01


def test_a_scale_below_what_float16_tells_from_zero_stays_above_it(tmp_path: Path) -> None:
    """Of a channel that pruning or weight decay left next to nothing: divided by 0 it would be no number."""
    source = tiny_onnx.write_qdq(tmp_path / "model.onnx", "s8a8w")
    model = onnx.load(source)
    model.opset_import[0].version = 19  # the first in which a quantizer's scale may be float16
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "conv_scale")
    stated = numpy_helper.to_array(scale).copy()
    stated[0] = 1e-9
    scale.CopyFrom(numpy_helper.from_array(stated, "conv_scale"))
    onnx.save(model, source)
    to_fp16(source, tmp_path / "half.onnx")
    halved = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer
    }
    assert halved["conv_scale"].dtype == np.float16
    assert halved["conv_scale"].min() > 0


def test_the_scheme_is_held_against_the_float16_file_too(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in which a layer lost its int8 is planted."""
    source = exported["s8a8w"][1]
    write_half(source, tmp_path / "half.onnx", scheme="s8a8w")

    def one_layer_less(source: Path, destination: Path) -> None:
        to_fp16(source, destination)
        model = onnx.load(destination)
        stem = next(node for node in model.graph.node if node.op_type == "Conv")
        stem.input[0] = next(node for node in model.graph.node if node.op_type == "Cast").output[0]
        onnx.save(model, destination)

    monkeypatch.setattr(export_stage, "to_fp16", one_layer_less)
    with pytest.raises(LoweringError, match="5 of 6 layers are int8, not 6"):
        write_half(source, tmp_path / "half.onnx", scheme="s8a8w")


def test_a_bias_too_large_for_its_scale_is_not_cut(net: TinyNet, tmp_path: Path) -> None:
    """A channel that BatchNorm shrinks to nothing has a tiny weight scale, and its bias must still fit int32."""
    dead = copy.deepcopy(net)
    with torch.no_grad():
        dead.project_norm.weight[:] = 1e-12
        dead.project_norm.bias[:] = torch.linspace(-2, 2, 8)
    model = quantize(dead, calibration(), scheme=get_scheme("u8a8w"))
    export_qdq(model, tmp_path / "model.onnx", input_shape=SHAPE, scheme=get_scheme("u8a8w"))
    x = torch.cat(calibration())
    assert difference(run(tmp_path / "model.onnx", x, plain=True), answers(model, x)) < TIES


def test_a_clipped_relu_with_a_shrunk_range_is_still_exact(net: TinyNet, tmp_path: Path) -> None:
    model = quantize(net, calibration(), scheme=get_scheme("u8a8w"))
    with torch.no_grad():
        for _, quantizer in named_quantizers(model):
            if not quantizer.per_channel:
                quantizer.log_scale += 0.3 if quantizer.max_scale else -0.3  # as training may move it
    export_qdq(model, tmp_path / "model.onnx", input_shape=SHAPE, scheme=get_scheme("u8a8w"))
    x = torch.cat(calibration())
    assert "Clip" not in counts(tmp_path / "model.onnx")
    assert difference(run(tmp_path / "model.onnx", x, plain=True), answers(model, x)) < TIES


def test_ignored_layers_are_named_as_float(net: TinyNet, tmp_path: Path) -> None:
    model = quantize(net, calibration(), scheme=get_scheme("u8a8w"), ignored=["wide"])
    summary = export_qdq(model, tmp_path / "model.onnx", input_shape=SHAPE, scheme=get_scheme("u8a8w"))
    assert summary == QDQSummary(compute_layers=6, quantized_layers=5, float_layers=("wide",))


def test_a_pad_before_a_convolution_moves_into_it(tmp_path: Path) -> None:
    """Newer exporters do this themselves, and ONNX Runtime does not fuse a convolution behind a Pad."""
    weight = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)
    before = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        graph (float[N, 3, 8, 8] input) => (float[N, 2, H, W] logits)
        <int64[8] pads = {0, 0, 0, 1, 0, 0, 2, 1}>
        { padded = Pad(input, pads)  logits = Conv <pads: ints = [1, 0, 0, 0]> (padded, weight) }
        """
    )
    before.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    onnx.save(before, tmp_path / "before.onnx")
    model = ir.load(tmp_path / "before.onnx")
    run_passes(model, [FOLD_PADS, CLEAN])
    ir.save(model, tmp_path / "after.onnx")
    assert counts(tmp_path / "after.onnx") == {"Conv": 1}
    x = torch.randn(2, 3, 8, 8)
    np.testing.assert_allclose(run(tmp_path / "after.onnx", x), run(tmp_path / "before.onnx", x), atol=1e-5)


def test_a_failing_pass_names_itself_and_those_before_it(float_file: Path) -> None:
    with pytest.raises(LoweringError, match=r"pass late cannot run after clean: Conv stem is left"):
        run_passes(ir.load(float_file), [CLEAN, GraphPass("late", lambda model: None, requires=absent("Conv"))])
    with pytest.raises(LoweringError, match=r"pass idle \(at the start\) did not do its work: Conv stem is left"):
        run_passes(ir.load(float_file), [GraphPass("idle", lambda model: None, ensures=absent("Conv"))])


def _zero_point(model: onnx.ModelProto, value: np.ndarray) -> None:
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[2])
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def _first_weight(model: onnx.ModelProto, change: Any) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("codes"))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))


def _cast_the_picture(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "early"
    model.graph.node.insert(
        0, onnx.helper.make_node("Cast", ["input"], ["early"], name="early", to=onnx.TensorProto.FLOAT)
    )


class Coded(nn.Module):
    """Adds codes of where a pixel is, made of a mask of the picture's shape as EdgeNeXt makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        here = ~torch.zeros((x.shape[0], x.shape[2], x.shape[3])).to(torch.bool)
        codes = here.cumsum(1, dtype=torch.float32) + here.cumsum(2, dtype=torch.float32)
        return self.fc((x + 0.1 * codes[:, None]).mean((2, 3)))


def test_codes_of_a_pictures_shape_may_cast(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pictures = torch.randn(4, 3, 16, 16)
    model = quantize(Coded().eval(), [pictures], scheme=get_scheme("u8a7w"))
    summary = export_qdq(model, tmp_path / "m.onnx", input_shape=(3, 16, 16), scheme=get_scheme("u8a7w"))
    assert summary.quantized_layers == summary.compute_layers == 2
    assert counts(tmp_path / "m.onnx")["Cast"] >= 1
    assert difference(run(tmp_path / "m.onnx", pictures, plain=True), answers(model, pictures)) < TIES


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: _zero_point(model, np.asarray(3, np.int8)), "has the zero point 3"),
        (lambda model: _zero_point(model, np.asarray(0, np.uint8)), "gives uint8"),
        (lambda model: _first_weight(model, lambda w: np.full_like(w, -128)), r"outside \[-127, 127\]"),
        (lambda model: _cast_the_picture(model), "Cast early should not be there"),
    ],
)
def test_a_file_that_breaks_its_scheme_is_refused_by_name(
    exported: Any, tmp_path: Path, damage: Any, message: str
) -> None:
    model = onnx.load(exported["s8a8w"][1])
    damage(model)
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(LoweringError, match=message):
        check_qdq(tmp_path / "broken.onnx", get_scheme("s8a8w"))


def test_a_layer_with_a_float_input_is_named_as_float(exported: Any, tmp_path: Path) -> None:
    model = onnx.load(exported["s8a8w"][1])
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    convolution.input[0] = "input"
    onnx.save(model, tmp_path / "half.onnx")
    assert check_qdq(tmp_path / "half.onnx", get_scheme("s8a8w")) == (6, 5, ("stem",))


@pytest.mark.parametrize("other", ["u8a7w", "s8a8w"])
def test_files_of_other_schemes_are_refused_also_as_they_are_written(exported: Any, tmp_path: Path, other: str) -> None:
    model, path, _ = exported["u8a8w"]
    with pytest.raises(LoweringError, match=f"scheme {other}"):
        check_qdq(path, get_scheme(other))
    with pytest.raises(LoweringError, match=f"scheme {other}"):
        export_qdq(model, tmp_path / "model.onnx", input_shape=SHAPE, scheme=get_scheme(other))


def test_a_float_model_is_no_qdq_model(net: TinyNet, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="not quantized"):
        export_qdq(net, tmp_path / "model.onnx", input_shape=SHAPE, scheme=get_scheme("u8a8w"))


class Weighed(nn.Module):
    """Each place has one weight, by a matrix of one column, as in SwiftFormer's additive attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, stride=4), nn.Linear(16, 4)
        self.weights = nn.Parameter(torch.randn(16, 1, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        places = self.stem(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head((places * torch.sigmoid(places @ self.weights)).mean(1))
        return logits


def test_a_matrix_of_one_column_has_its_one_scale_along_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scheme, x = get_scheme("u8a7w"), torch.cat(calibration())
    model = quantize(Weighed().eval(), calibration(), scheme=scheme)
    export_qdq(model, tmp_path / "model.onnx", input_shape=(3, 32, 32), scheme=scheme)
    graph = onnx.load(tmp_path / "model.onnx").graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    column = next(node for node in graph.node if arrays.get(node.input[0], np.zeros(0)).shape == (16, 1))
    assert [one.i for one in column.attribute if one.name == "axis"] == [1]
    assert arrays[column.input[1]].shape == (1,)
    assert difference(run(tmp_path / "model.onnx", x), answers(model, x)) < TIES


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def test_a_model_that_cannot_be_traced_is_refused_in_one_line_with_the_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"inner": Branching()})["inner"])
    with pytest.raises(LoweringError, match="Sequential cannot be exported to ONNX at 1: ") as error:
        export_float(model, tmp_path / "model.onnx", input_shape=SHAPE)
    assert len(str(error.value).splitlines()) == 2
    assert "write 1 without branches on values" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_layernorm_and_softmax_read_and_compute_float_and_attentions_products_are_named(tmp_path: Path) -> None:
    """Of a vision transformer of one block: rounded, the residual stream would lose what small channels say."""
    import timm

    arguments: dict[str, Any] = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2}
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=4, **arguments).eval()
    model = quantize(net, calibration(), scheme=get_scheme("u8a8w"), int8_outputs=True)
    summary = export_qdq(model, tmp_path / "model.onnx", input_shape=SHAPE, scheme=get_scheme("u8a8w"))
    graph = onnx.load(tmp_path / "model.onnx").graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    read = [(node.op_type, makers[node.input[0]]) for node in graph.node
            if node.op_type in ("Softmax", "LayerNormalization")]  # fmt: skip
    assert Counter(read) == {("LayerNormalization", "Add"): 3, ("Softmax", "MatMul"): 1}
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    products = {
        node.name for node in graph.node if node.output[0] == softmax.input[0] or softmax.output[0] in node.input
    }
    assert set(summary.float_layers) == products
    assert (summary.compute_layers, summary.quantized_layers, len(products)) == (8, 6, 2)


class Attending(nn.Module):
    """Attention of one head, and of windows as Hiera has it: torch's exporter writes that of four axes only."""

    def __init__(self, shape: tuple[int, ...], masked: str) -> None:
        super().__init__()
        self.shape, self.masked = shape, masked
        self.embed, self.qkv, self.head = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = self.qkv(self.embed(x).flatten(2).transpose(1, 2))
        query, key, value = (part.reshape(-1, *self.shape) for part in places.chunk(3, dim=-1))
        size = query.shape[-2]
        earlier = torch.ones(size, size, dtype=torch.bool).tril()
        allowed = {"": None, "bool": earlier, "float": earlier.float()}[self.masked]
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        logits: Tensor = self.head(mixed.reshape(x.shape[0], -1, 8).mean(1))
        return logits


@pytest.mark.parametrize(
    ("shape", "masked"), [((16, 8), ""), ((16, 8), "bool"), ((16, 8), "float"), ((2, 4, 4, 4), "")]
)
def test_attention_may_have_any_number_of_axes(shape: tuple[int, ...], masked: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Attending(shape, masked).eval(), torch.cat(calibration())
    export_float(net, tmp_path / "model.onnx", input_shape=SHAPE)
    with torch.inference_mode():
        np.testing.assert_allclose(run(tmp_path / "model.onnx", x), net(x).numpy(), atol=1e-5)
    if not masked:
        scheme = get_scheme("u8a7w")
        model = quantize(net, calibration(), scheme=scheme)
        export_qdq(model, tmp_path / "int8.onnx", input_shape=SHAPE, scheme=scheme)
        assert difference(run(tmp_path / "int8.onnx", x), answers(model, x)) < TIES


@pytest.mark.slow
def test_attention_is_written_whatever_its_layout_in_memory(tmp_path: Path) -> None:
    """MaxViT reshapes what attention makes at once, which the exporter refuses after the kernel PyTorch picks."""
    import timm

    torch.manual_seed(0)
    model, x = timm.create_model("test_maxvit", num_classes=3, img_size=64).eval(), torch.randn(3, 3, 64, 64)
    export_float(model, tmp_path / "model.onnx", input_shape=(3, 64, 64))
    with torch.inference_mode():
        np.testing.assert_allclose(run(tmp_path / "model.onnx", x), model(x).numpy(), atol=1e-4)
