"""NNCF's basic flow for a PyTorch model: quantize with its defaults, convert, save.

https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/basic-quantization-flow.html
"""

from pathlib import Path

import nncf
import numpy as np
import openvino
import torch

from edgeopt import models

model = models.load(Path("inputs/float"))
pictures = torch.from_numpy(np.load("inputs/calib.npy"))
quantized = nncf.quantize(model, nncf.Dataset(torch.utils.data.DataLoader(pictures)))
converted = openvino.convert_model(quantized, example_input=pictures[:1], input=list(pictures[:1].shape))
openvino.save_model(converted, "model.xml", compress_to_fp16=False)
