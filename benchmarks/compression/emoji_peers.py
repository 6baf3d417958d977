"""Post-training quantizers that others ship, as their documentation uses them; ../peers opens what they make."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import Target, environment, load_target, telemetry

_BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_BENCHMARKS), str(_BENCHMARKS / "peers" / "plugin")]  # the plugin: for the processes that time, too

from peers.plain import NAME as PLAIN  # noqa: E402

Pictures = Sequence[Any]  # float32 (1, 3, height, width) each


@dataclass(frozen=True)
class Peer:
    """How it is called, where its engine runs, and what makes it: (float ONNX, pictures, folder) -> engine file."""

    title: str
    runtime: str
    backend: str
    make: Callable[[Path, Pictures, Path], Path]

    def target(self) -> Target:
        return load_target(self.runtime).model_copy(update={"backend": self.backend})


def _nncf(onnx: Path, pictures: Pictures, folder: Path) -> Path:
    """https://docs.openvino.ai, basic quantization flow: ``nncf.quantize`` of OpenVINO's model, its defaults."""
    telemetry.switch_off()
    import nncf
    import openvino

    quantized = nncf.quantize(openvino.convert_model(str(onnx)), nncf.Dataset(list(pictures)))
    engine = folder / "engine.xml"
    openvino.save_model(quantized, engine)
    return engine


def _defaults(onnx: Path, pictures: Pictures, folder: Path) -> Path:
    from onnxruntime.quantization import quantize_static

    engine = folder / "engine.onnx"
    quantize_static(str(onnx), str(engine), _reader(onnx, pictures))
    return engine


def _tuned(onnx: Path, pictures: Pictures, folder: Path) -> Path:
    """https://onnxruntime.ai, quantize ONNX models: pre-processed, uint8 activations, int8 weights for each channel.

    Weights of 7 bits where the CPU has no VNNI ("reduce_range"), as it says for x64 with AVX2.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, engine = folder / "prepared.onnx", folder / "engine.onnx"
    quant_pre_process(str(onnx), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(engine),
        _reader(onnx, pictures),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not environment.has_int8_dot(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()
    return engine


def _reader(onnx: Path, pictures: Pictures) -> Any:
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader

    name = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Any] = iter(pictures)

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self._left, None)
            return None if picture is None else {name: picture}

    return Reader()


PEERS = {
    "nncf-openvino": Peer("NNCF PTQ", "openvino", "openvino", _nncf),
    "static-onnxruntime": Peer("quantize_static, defaults", "onnxruntime", PLAIN, _defaults),
    "tuned-onnxruntime": Peer("quantize_static, tuned", "onnxruntime", PLAIN, _tuned),
}
