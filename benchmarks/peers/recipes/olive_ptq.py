"""Microsoft Olive's post-training quantization on CPUs: the pass and settings of its ResNet example.

https://github.com/microsoft/Olive/blob/main/examples/resnet/resnet_ptq_cpu.json
https://microsoft.github.io/Olive/reference/python_api.html
"""

import numpy as np
import olive
from olive.data.registry import Registry


@Registry.register_dataset()
def pictures(**_: object) -> list:
    return [({"input": row}, 0) for row in np.load("inputs/calib.npy")]


olive.run(
    {
        "input_model": {"type": "ONNXModel", "model_path": "inputs/float.onnx"},
        "data_configs": [{"name": "calibration", "load_dataset_config": {"type": "pictures"}}],
        "passes": {
            "quantization": {
                "type": "OnnxStaticQuantization",
                "data_config": "calibration",
                "precision": "uint8",
                "activation_type": "uint8",
                "calibrate_method": "MinMax",
                "quant_preprocess": True,
            }
        },
        "cache_dir": "cache",
        "output_dir": "model.onnx",
    }
)
