"""ONNX Runtime gets int8 gates and pools: swish, hard-swish and squeeze-and-excitation leave no map in float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeopt.backends import onnxruntime_gates
from edgeopt.backends.base import BuildRequest
from edgeopt.backends.bisection import first_difference
from edgeopt.backends.onnxruntime import OnnxRuntimeBackend
from edgeopt.backends.onnxruntime_gates import quantize_gates
from edgeopt.compress.quantize import named_quantizers, quantize
from edgeopt.config import Target, load_target
from edgeopt.export.qdq import export_qdq
from edgeopt.schemes import get_scheme

SHAPE = (3, 32, 32)


class Gated(nn.Module):
    """As in MobileNetV3 and EfficientNet: convolutions before hard-swish and swish, squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(width, 16, 3, padding=1) for width in (3, 16, 16))
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.first(x))
        x = nn.functional.silu(self.second(x))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = torch.relu(self.third(x * torch.sigmoid(gate)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    batches = [torch.randn(8, *SHAPE) for _ in range(2)]
    return quantize(Gated().eval(), batches, scheme=get_scheme("u8a8w"), int8_outputs=True)


@pytest.fixture(scope="module")
def exported(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gates") / "model.onnx"
    export_qdq(model, path, input_shape=SHAPE, scheme=get_scheme("u8a8w"))
    return path


def executed(path: Path, folder: Path) -> Counter[str]:
    """How many operators of each type ONNX Runtime runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def built(exported: Path, folder: Path, **changes: object) -> Path:
    target = load_target("onnxruntime")
    target = Target.model_validate({**target.model_dump(by_alias=True), **changes})
    (folder / "engine").mkdir()
    made = OnnxRuntimeBackend().build(
        BuildRequest(exported, folder / "engine", target, "int8", get_scheme("u8a8w"), SHAPE)
    )
    assert made.engine is not None
    assert [one.name for one in (folder / "engine").iterdir()] == [made.engine]
    return folder / "engine" / made.engine


def test_products_and_pools_run_in_int8(exported: Path, tmp_path: Path) -> None:
    before, after = executed(exported, tmp_path), executed(built(exported, tmp_path), tmp_path)
    assert before["Mul"] == 2, "what is mended is there to mend"
    assert (after["Mul"], after["QLinearMul"], after["QLinearSigmoid"]) == (0, 3, 1)
    assert (before["HardSigmoid"], after["HardSigmoid"], after["QLinearAdd"]) == (1, 0, 1)
    assert after["GlobalAveragePool"] == 0
    assert after["QLinearGlobalAveragePool"] >= 1
    assert after["DequantizeLinear"] < before["DequantizeLinear"]


def test_the_answers_stay(model: nn.Module, exported: Path, tmp_path: Path) -> None:
    pictures = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        simulated = model(pictures).numpy()
    target = load_target("onnxruntime")
    with OnnxRuntimeBackend().open(built(exported, tmp_path), target, precision="int8", threads=1) as session:
        deployed = session.infer(pictures.numpy())
    assert np.abs(deployed - simulated).mean() < 0.05 * simulated.std()


def test_the_pool_of_squeeze_and_excitation_is_closed_for_int8_outputs_alone(model: nn.Module) -> None:
    batches = [torch.randn(8, *SHAPE)]
    left = dict(named_quantizers(quantize(Gated().eval(), batches, scheme=get_scheme("u8a8w"))))
    added = {name.split("/")[-2] for name in dict(named_quantizers(model)) if name not in left}
    assert added == {"conv2d", "mean"}


def graph(
    tmp_path: Path,
    *,
    zero_point: int | None = 0,
    kind: str = "Sigmoid",
    quantized: bool = True,
    read: str = "",
    narrower: float = 1.0,
    named: str = "scale",
) -> Path:
    """``x * gate(x)`` of int8 codes, of a product ``narrower`` than x; ``read`` is a second reader of the gate."""
    dtype = np.int8 if zero_point is None else np.uint8
    constants = {
        named: np.float32(0.05),
        "fine": np.float32(0.05 / narrower),
        "zero": np.asarray(zero_point or 0, dtype),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", named, "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", named, "zero"], ["x"]),
        helper.make_node(kind, ["x"], ["gate"] if kind != "HardSwish" else ["product"], name="the gate"),
    ]
    nodes += [helper.make_node("Mul", ["gate", "x"], ["product"])] if kind != "HardSwish" else []
    nodes += [helper.make_node(read, ["gate"], ["other"])] if read else []
    last = "product"
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["product", "fine", "zero"], ["product codes"]))
        nodes.append(helper.make_node("DequantizeLinear", ["product codes", "fine", "zero"], ["end"]))
        last = "end"
    shape = ["N", 4]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name in (last, *(["other"] if read else []))
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("kind", ["Sigmoid", "HardSigmoid", "HardSwish"])
def test_a_gate_has_codes_from_0_to_1_and_every_other_tensor_its_name(kind: str, tmp_path: Path) -> None:
    source = graph(tmp_path, kind=kind)
    assert quantize_gates(source, tmp_path / "gated.onnx") == 1
    before, after = onnx.load(source), onnx.load(tmp_path / "gated.onnx")
    onnx.checker.check_model(after, full_check=True)
    names = {name for node in before.graph.node for name in node.output}
    assert names <= {name for node in after.graph.node for name in node.output}
    import onnxruntime

    values = np.linspace(-6.4, 6.35, 256, dtype=np.float32).reshape(-1, 4)
    plain, gated = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": values})[0]
        for path in (source, tmp_path / "gated.onnx")
    )
    assert np.abs(gated - plain).max() <= 0.05 + 1e-6, "one code at most"


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_point": None},
        {"quantized": False},
        {"read": "Relu"},
        {"kind": "HardSwish", "quantized": False},
        {"narrower": 5.0},
        {"kind": "HardSwish", "narrower": 5.0},
    ],
    ids=[
        "signed codes",
        "a float product",
        "a gate that is read elsewhere",
        "a float hard-swish",
        "a product of small gates",
        "a hard-swish of small values",
    ],
)
def test_what_would_not_become_an_int8_product_is_left_as_it_is(changes: dict[str, object], tmp_path: Path) -> None:
    source = graph(tmp_path, **changes)  # type: ignore[arg-type]
    assert quantize_gates(source, tmp_path / "gated.onnx") == 0
    assert (tmp_path / "gated.onnx").read_bytes() == source.read_bytes(), "a package holds one file of the two"


def test_bisection_looks_at_the_gates_that_the_engine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate whose codes end at 0.5 is planted: without it in what is looked at, no layer would part."""
    source, target = graph(tmp_path), Target(schema=1, title="t", backend="onnxruntime")
    values = np.linspace(0.05, 6.35, 256, dtype=np.float32).reshape(-1, 4)
    assert first_difference(OnnxRuntimeBackend(), source, target, "int8", values) is None
    whole = onnxruntime_gates._constants
    halved = numpy_helper.from_array(np.asarray(0.5 / 255, np.float32), onnxruntime_gates._SCALE).SerializeToString()
    monkeypatch.setattr(onnxruntime_gates, "_constants", lambda: (halved, *whole()[1:]))
    assert first_difference(OnnxRuntimeBackend(), source, target, "int8", values) is not None


def test_a_models_own_gate_scale_is_not_taken_for_ours(tmp_path: Path) -> None:
    source = graph(tmp_path, named="gate.scale")
    assert quantize_gates(source, tmp_path / "gated.onnx") == 1
    names = [tensor.name for tensor in onnx.load(tmp_path / "gated.onnx").graph.initializer]
    assert len(names) == len(set(names))


def test_what_has_int8_gates_gets_no_others(tmp_path: Path) -> None:
    """A package for ONNX Runtime may hold the engine alone, of which it is built again."""
    for kind in ("Sigmoid", "HardSwish"):
        gated, again = tmp_path / "gated.onnx", tmp_path / "again.onnx"
        assert quantize_gates(graph(tmp_path, kind=kind), gated) == 1
        assert quantize_gates(gated, again) == 0
        assert onnx.load(again) == onnx.load(gated)


@pytest.mark.parametrize("kind", ["Sigmoid", "HardSwish"])
@pytest.mark.parametrize(
    ("low", "high"), [(-3, 3), (-3, 1), (-3, 200), (-0.5, 0.01), (0, 0.001), (-20, 20), (-20, 1), (-3, 0), (-2, 2000)]
)
def test_every_code_of_every_range_is_answered_within_two_codes(
    kind: str, low: float, high: float, tmp_path: Path
) -> None:
    """Between quantizers as calibration sets them, zero points anywhere; what would lose more is left in float."""
    import onnxruntime

    scale = (high - low) / 255
    zero = round(-low / scale)
    x = ((np.arange(256) - zero) * scale).astype(np.float32)
    y = x * (np.clip(x / 6 + 0.5, 0, 1) if kind == "HardSwish" else 1 / (1 + np.exp(-x)))
    end = (max(y.max(), 0) - min(y.min(), 0)) / 255
    model = onnx.load(graph(tmp_path, kind=kind))
    values = {
        "scale": np.float32(scale),
        "zero": np.uint8(zero),
        "fine": np.float32(end),
        "last": np.uint8(round(-min(y.min(), 0) / end)),
    }
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(one), name) for name, one in values.items())
    for node in model.graph.node:
        if "fine" in node.input:
            node.input[2] = "last"
    onnx.save(model, tmp_path / "graph.onnx")
    quantize_gates(tmp_path / "graph.onnx", tmp_path / "gated.onnx")
    plain, gated = (
        onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"]).run(
            None, {"input": x.reshape(-1, 4)}
        )[0]
        for name in ("graph.onnx", "gated.onnx")
    )
    assert np.abs(plain - gated).max() <= 2.01 * end
