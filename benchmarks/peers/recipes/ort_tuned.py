"""ONNX Runtime's static quantization as its guide says to tune it, the way to find ranges chosen on val.

Pre-processing, QDQ, uint8 activations, int8 weights per channel, 7 bits where the CPU has no VNNI.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#pre-processing
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#when-to-use-reduce-range-and-per-channel-quantization
"""

from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Pictures(CalibrationDataReader):
    def __init__(self) -> None:
        self.rows = iter(np.load("inputs/calib.npy"))

    def get_next(self) -> dict | None:
        row = next(self.rows, None)
        return None if row is None else {"input": row[None]}


def right_on_val(model: str) -> int:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = [session.run(None, {"input": row[None]})[0].argmax() for row in np.load("inputs/val.npy")]
    return int((np.array(answers) == np.load("inputs/val_labels.npy")).sum())


quant_pre_process("inputs/float.onnx", "prepared.onnx")
vnni = "vnni" in Path("/proc/cpuinfo").read_text()
scores = {}
for method in (CalibrationMethod.MinMax, CalibrationMethod.Entropy, CalibrationMethod.Percentile):
    file = f"{method.name}.onnx"
    quantize_static(
        "prepared.onnx",
        file,
        Pictures(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not vnni,
        calibrate_method=method,
    )
    scores[file] = right_on_val(file)
Path(max(scores, key=scores.get)).rename("model.onnx")
