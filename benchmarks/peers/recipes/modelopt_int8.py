"""NVIDIA Model Optimizer's int8 quantization of an ONNX model: entropy, its default; what stays float in float32.

Its default for the rest is fp16, for TensorRT, which is what its files are made for; CPUs have no fp16.
https://nvidia.github.io/TensorRT-Model-Optimizer/guides/_onnx_quantization.html
"""

import numpy as np
from modelopt.onnx.quantization import quantize

quantize(
    "inputs/float.onnx",
    quantize_mode="int8",
    calibration_data=np.load("inputs/calib.npy"),
    calibration_method="entropy",
    calibration_eps=["cpu"],
    high_precision_dtype="fp32",
    output_path="model.onnx",
)
