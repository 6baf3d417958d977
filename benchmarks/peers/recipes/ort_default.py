"""ONNX Runtime's static quantization with its defaults.

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#static-quantization
"""

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_static


class Pictures(CalibrationDataReader):
    def __init__(self) -> None:
        self.rows = iter(np.load("inputs/calib.npy"))

    def get_next(self) -> dict | None:
        row = next(self.rows, None)
        return None if row is None else {"input": row[None]}


quantize_static("inputs/float.onnx", "model.onnx", Pictures())
