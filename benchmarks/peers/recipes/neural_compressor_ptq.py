"""Intel neural-compressor's static quantization of an ONNX model, from its guide.

Since 3.0 neural-compressor itself quantizes no ONNX; its ONNX half is the package onnx-neural-compressor. Imported on a
CPU without VNNI it says that reduce_range=True is recommended there.
https://github.com/onnx/neural-compressor/blob/main/docs/quantization.md#post-training-quantization
"""

from pathlib import Path

import numpy as np
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import config, quantize


class Pictures(data_reader.CalibrationDataReader):
    def __init__(self) -> None:
        self.rewind()

    def get_next(self) -> dict | None:
        row = next(self.rows, None)
        return None if row is None else {"input": row[None]}

    def rewind(self) -> None:
        self.rows = iter(np.load("inputs/calib.npy"))


vnni = "vnni" in Path("/proc/cpuinfo").read_text()
quantize("inputs/float.onnx", "model.onnx", config.StaticQuantConfig(Pictures(), reduce_range=not vnni))
