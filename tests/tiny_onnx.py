"""Tiny real ONNX classifiers written by hand: float, and QDQ in each scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeopt.schemes import get_scheme

SHAPE = (3, 16, 16)
CLASSES = 5


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes))
        return output

    def save(self, path: Path) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        return path


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Float weights of conv(3->8, stride 2) + ReLU, depthwise conv(8), global pooling, gemm(8->5)."""
    rng = np.random.default_rng(seed)
    return {
        "conv": rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32),
        "depthwise": rng.normal(0, 0.5, (8, 1, 3, 3)).astype(np.float32),
        "gemm": rng.normal(0, 1, (CLASSES, 8)).astype(np.float32),
    }


def write_extreme(path: Path, scheme_name: str) -> tuple[Path, np.ndarray, np.ndarray]:
    """A gemm whose sums are as large as the scheme allows, an input for it, and the exact logits.

    Every product of neighbours has the same sign, so an int16 sum of two of them overflows unless weights keep to 7
    bits. Numbers are chosen so that the logits are exact in every format: all scales are powers of two.
    """
    scheme = get_scheme(scheme_name)
    kind = np.int8 if scheme.activation_signed else np.uint8
    features = SHAPE[0] * SHAPE[1] * SHAPE[2]
    graph = _Graph()
    stored = np.full((CLASSES, features), scheme.weight_max, np.int8)
    stored[1::2] *= -1
    graph.constant("w_q", stored)
    graph.constant("w_scale", np.full(CLASSES, 2.0**-7, np.float32))
    graph.constant("w_zero", np.zeros(CLASSES, np.int8))
    graph.constant("x_scale", np.float32(2.0**-7))
    graph.constant("x_zero", np.zeros((), kind))
    graph.node("QuantizeLinear", ["input", "x_scale", "x_zero"], "x_q")
    graph.node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], "x_dq")
    graph.node("Flatten", ["x_dq"], "flat")
    graph.node("QuantizeLinear", ["flat", "x_scale", "x_zero"], "flat_q")
    graph.node("DequantizeLinear", ["flat_q", "x_scale", "x_zero"], "flat_dq")
    graph.node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], "w_dq", axis=0)
    graph.node("Gemm", ["flat_dq", "w_dq"], "sums", transB=1)
    top = np.int64(127 if scheme.activation_signed else 255)
    exact = stored.astype(np.int64).sum(axis=1) * top * 2.0**-14
    graph.constant("y_scale", np.float32(2.0 ** np.ceil(np.log2(np.abs(exact).max() / 100))))
    graph.constant("y_zero", np.asarray(0 if scheme.activation_signed else 128, kind))
    graph.node("QuantizeLinear", ["sums", "y_scale", "y_zero"], "y_q")
    graph.node("DequantizeLinear", ["y_q", "y_scale", "y_zero"], "logits")
    step = 2.0 ** np.ceil(np.log2(np.abs(exact).max() / 100))
    picture = np.full((1, *SHAPE), top * 2.0**-7, np.float32)
    return graph.save(path), picture, (np.round(exact / step) * step)[None]


def write_float(path: Path, *, seed: int = 0) -> Path:
    """The float32 model."""
    graph = _Graph()
    values = weights(seed)
    for name, value in values.items():
        graph.constant(name, value)
    at = graph.node("Conv", ["input", "conv"], "c1", strides=[2, 2], pads=[1, 1, 1, 1])
    at = graph.node("Relu", [at], "r1")
    at = graph.node("Conv", [at, "depthwise"], "c2", pads=[1, 1, 1, 1], group=8)
    at = graph.node("Relu", [at], "r2")
    at = graph.node("GlobalAveragePool", [at], "pool")
    at = graph.node("Flatten", [at], "flat")
    graph.node("Gemm", [at, "gemm"], "logits", transB=1)
    return graph.save(path)


def write_qdq(path: Path, scheme_name: str, *, seed: int = 0, float_gemm: bool = False, zero_point: int = 0) -> Path:
    """The same model with Q/DQ around every compute layer, as ``scheme_name`` lays it out."""
    scheme = get_scheme(scheme_name)
    kind = np.int8 if scheme.activation_signed else np.uint8
    graph = _Graph()
    values = weights(seed)

    def activation(name: str, top: float, *, signed: bool = False, output: str = "") -> str:
        """Q/DQ of an activation in [0, top], or [-top, top] when ``signed``; returns the dequantized ``output``."""
        if scheme.activation_signed:
            scale, zero = top / 127, zero_point
        else:
            scale, zero = (2 * top / 255, 128) if signed else (top / 255, 0)
        graph.constant(f"{name}_scale", np.float32(scale))
        graph.constant(f"{name}_zero", np.asarray(zero, kind))
        inputs = [f"{name}_scale", f"{name}_zero"]
        graph.node("QuantizeLinear", [name, *inputs], f"{name}_q")
        return graph.node("DequantizeLinear", [f"{name}_q", *inputs], output or f"{name}_dq")

    def weight(name: str) -> str:
        value = values[name]
        scale = np.abs(value).reshape(len(value), -1).max(axis=1) / scheme.weight_max
        stored = np.round(value / scale.reshape(-1, *[1] * (value.ndim - 1))).astype(np.int8)
        graph.constant(f"{name}_q", stored)
        graph.constant(f"{name}_scale", scale.astype(np.float32))
        graph.constant(f"{name}_zero", np.zeros(len(value), np.int8))
        return graph.node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], f"{name}_dq", axis=0)

    at = activation("input", 3.0, signed=True)
    graph.node("Conv", [at, weight("conv")], "c1", strides=[2, 2], pads=[1, 1, 1, 1])
    graph.node("Relu", ["c1"], "r1")
    at = activation("r1", 6.0)
    graph.node("Conv", [at, weight("depthwise")], "c2", pads=[1, 1, 1, 1], group=8)
    graph.node("Relu", ["c2"], "r2")
    at = activation("r2", 6.0)
    graph.node("GlobalAveragePool", [at], "pool")
    at = activation("pool", 6.0)
    graph.node("Flatten", [at], "flat")
    if float_gemm:
        graph.constant("gemm", values["gemm"])
        graph.node("Gemm", ["flat", "gemm"], "logits", transB=1)
        return graph.save(path)
    at = activation("flat", 6.0)
    graph.node("Gemm", [at, weight("gemm")], "gemm_out", transB=1)
    activation("gemm_out", 12.0, signed=True, output="logits")
    return graph.save(path)


def write_strided_pointwise(path: Path, channels: int) -> Path:
    """Int8: conv(3->channels), then conv 1x1 with stride 2 (->16) beside a pooling, as in a ResNet's downsampling."""
    rng = np.random.default_rng(0)
    graph = _Graph()

    def activation(name: str, scale: float, zero: int, output: str) -> str:
        graph.constant(f"{output}_scale", np.float32(scale))
        graph.constant(f"{output}_zero", np.uint8(zero))
        inputs = [f"{output}_scale", f"{output}_zero"]
        graph.node("QuantizeLinear", [name, *inputs], f"{output}_q")
        return graph.node("DequantizeLinear", [f"{output}_q", *inputs], output)

    def weight(name: str, *shape: int) -> str:
        graph.constant(f"{name}_q", rng.integers(-63, 64, shape).astype(np.int8))
        graph.constant(f"{name}_scale", np.full(shape[0], 0.01, np.float32))
        graph.constant(f"{name}_zero", np.zeros(shape[0], np.int8))
        return graph.node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], name, axis=0)

    at = activation("input", 0.02, 128, "x")
    graph.node("Conv", [at, weight("w1", channels, 3, 3, 3)], "c1", pads=[1, 1, 1, 1])
    graph.node("Relu", ["c1"], "r1")
    at = activation("r1", 0.05, 0, "a1")
    graph.node("Conv", [at, weight("w2", 16, channels, 1, 1)], "c2", strides=[2, 2])
    short = activation("c2", 0.05 * channels**0.5, 128, "a2")
    graph.node("Conv", [at, weight("w3", 16, channels, 3, 3)], "c3", strides=[2, 2], pads=[1, 1, 1, 1])
    long = activation("c3", 0.15 * channels**0.5, 128, "a3")
    graph.node("Add", [short, long], "sum")
    at = activation("sum", 0.15 * channels**0.5, 128, "a4")
    graph.node("GlobalAveragePool", [at], "pool")
    graph.node("Flatten", ["pool"], "flat")
    graph.constant("first", np.arange(CLASSES))
    graph.node("Gather", ["flat", "first"], "logits", axis=1)
    return graph.save(path)
