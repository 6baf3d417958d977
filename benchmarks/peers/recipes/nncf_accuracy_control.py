"""NNCF's quantization with accuracy control of an ONNX model: layers go back to float until val lost at most a point.

https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/quantizing-with-accuracy-control.html
"""

import nncf
import numpy as np
import onnx
import onnxruntime


def validate(model: onnx.ModelProto, pairs: list) -> float:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return float(np.mean([session.run(None, {"input": row[None]})[0].argmax() == label for row, label in pairs]))


calibration = nncf.Dataset(list(np.load("inputs/calib.npy")), lambda row: {"input": row[None]})
validation = nncf.Dataset(list(zip(np.load("inputs/val.npy"), np.load("inputs/val_labels.npy"), strict=True)))
model = nncf.quantize_with_accuracy_control(
    onnx.load("inputs/float.onnx"), calibration, validation, validate, max_drop=0.01
)
onnx.save(model, "model.onnx")
