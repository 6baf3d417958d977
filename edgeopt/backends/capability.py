"""The capability table: the int8 schemes each backend runs exactly and fuses, by processor, with evidence."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from edgeopt import environment

#: Processor kinds that decide the int8 kernels, see :func:`processor`.
PROCESSORS = ("x86-dot", "x86", "arm64", "nvidia", "nvidia-cuda", "intel-gpu", "intel-npu")


@dataclass(frozen=True)
class Capability:
    """``schemes``, best first, that ``backend`` runs without saturation and fuses on ``processor``."""

    backend: str
    processor: str
    schemes: tuple[str, ...]
    evidence: str


TABLE = (
    Capability(
        "onnxruntime",
        "x86-dot",
        ("u8a8w", "u8a7w"),
        "measured on AVX512-VNNI, ONNX Runtime 1.31: every convolution and gemm of lite0 and resnet18 becomes "
        "QLinearConv/QGemm; s8a8w leaves 15 to 40 of mobilenetv2's 52 in float",
    ),
    Capability(
        "onnxruntime",
        "x86",
        ("u8a7w", "u8a8w"),
        "measured on AVX2 without VNNI, ONNX Runtime 1.31: sums of two u8*s8 products saturate at int16 (vpmaddubsw), "
        "on worst-case inputs by 56 of 255 output steps; u8a7w (|w| <= 63) is exact at full speed, u8a8w exact with "
        "x64quantprecision, which the session sets and which costs 15 to 40 % of the speed",
    ),
    Capability(
        "onnxruntime",
        "arm64",
        ("u8a8w", "u8a7w"),
        "emulated: u8a8w on Cortex-A76 and A72 (qemu), ONNX Runtime 1.23, at least 99 % of 200 answers as on x86 and "
        "every compute layer in int8 (tests/test_arm64.py); NEON widens exactly",
    ),
    Capability(
        "onnxruntime",
        "nvidia",
        ("s8a8w",),
        "documented, not run here: the TensorRT provider takes int8 with zero point 0, once trt_int8_enable is set; it "
        "names no layers, so that there is no audit",
    ),
    Capability(
        "onnxruntime",
        "nvidia-cuda",
        ("s8a8w", "u8a8w", "u8a7w"),
        "documented, not run here: the CUDA provider has no int8 convolutions, and computes in float between Q and DQ: "
        "exact, not faster; the fusion audit names every layer as float",
    ),
    Capability(
        "openvino",
        "x86-dot",
        ("u8a8w", "s8a8w", "u8a7w"),
        "measured on AVX512-VNNI, OpenVINO 2026.4: every convolution of lite0, resnet18 and mobilenetv2 runs in "
        "u8 or i8",
    ),
    Capability(
        "openvino",
        "x86",
        ("u8a7w",),
        "measured on AVX2 without VNNI, OpenVINO 2026.4: its jit_avx2_I8 kernels saturate as well, by the same 56 "
        "and 119 of 255 output steps; u8a7w by none",
    ),
    Capability(
        "openvino",
        "arm64",
        ("u8a8w", "s8a8w", "u8a7w"),
        "documented, not run here: OpenVINO's ARM plugin runs int8 convolutions through Compute Library; the fusion "
        "audit tells",
    ),
    Capability(
        "openvino",
        "intel-gpu",
        ("u8a8w", "s8a8w", "u8a7w"),
        "documented, not run here: the GPU plugin runs u8 and i8 activations by DP4a and XMX, which sum into int32",
    ),
    Capability(
        "openvino",
        "intel-npu",
        ("u8a8w", "s8a8w", "u8a7w"),
        "documented, not run here: the NPU plugin compiles quantized models ahead of time, u8 and i8 alike",
    ),
    Capability(
        "tensorrt",
        "nvidia",
        ("s8a8w",),
        "documented, and seen in the TensorRT-RTX 1.7 parser: a zero point other than 0 is rejected, uint8 is "
        "taken for int8",
    ),
    Capability(
        "tensorrt_rtx",
        "nvidia",
        ("s8a8w",),
        "measured with TensorRT-RTX 1.7: the layer table of the build shows Int8 convolutions and gemms",
    ),
)


@dataclass(frozen=True)
class Precision:
    """A precision that ``backend`` computes in, and what that takes."""

    backend: str
    precision: str
    needs: str  # of the device; empty: nothing
    evidence: str


PRECISIONS = (
    Precision("onnxruntime", "fp32", "", "measured"),
    Precision(
        "onnxruntime",
        "fp16",
        "",
        "measured on AVX2, ONNX Runtime 1.31: float16 weights, computed in float32 between casts, so half the size and "
        "no faster; documented: native on CUDA and on ARM64 with FP16 arithmetic",
    ),
    Precision("onnxruntime", "int8", "", "measured; see TABLE"),
    Precision("openvino", "fp32", "", "measured"),
    Precision("openvino", "bf16", "BF16 in the device's OPTIMIZATION_CAPABILITIES", "measured on AVX512-BF16"),
    Precision("openvino", "fp16", "FP16 in the device's OPTIMIZATION_CAPABILITIES", "documented, not run here"),
    Precision(
        "openvino", "int8", "", "measured, float32 for the rest; see TABLE; documented: float16 for it on GPU and NPU"
    ),
    Precision("tensorrt", "fp32", "", "documented, not run here"),
    Precision("tensorrt", "fp16", "", "documented, not run here: a strongly typed network of the float16 ONNX"),
    Precision("tensorrt", "int8", "", "documented, not run here: int8, and float16 for the rest"),
    Precision("tensorrt_rtx", "fp32", "", "engine built, TensorRT-RTX 1.7"),
    Precision("tensorrt_rtx", "fp16", "", "engine built, TensorRT-RTX 1.7"),
    Precision("tensorrt_rtx", "int8", "", "engine built, TensorRT-RTX 1.7: int8, and float16 for the rest"),
)


def precisions_of(backend: str) -> tuple[str, ...]:
    """The precisions of a backend, from the table."""
    return tuple(row.precision for row in PRECISIONS if row.backend == backend)


def processor() -> str:
    """``"arm64"``, ``"x86-dot"`` (VNNI or AMX: u8*s8 summed into int32) or ``"x86"`` (sums saturate at int16)."""
    if platform.machine() in ("arm64", "aarch64"):
        return "arm64"
    return "x86-dot" if environment.has_int8_dot() else "x86"


def schemes_for(backend: str, processor: str) -> tuple[str, ...]:
    """Schemes, best first, from the table; empty for a pair it does not know."""
    for row in TABLE:
        if (row.backend, row.processor) == (backend, processor):
            return row.schemes
    return ()
