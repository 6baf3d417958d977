"""NNCF's quantization-aware training: its basic flow, then five epochs at 1e-5 with Adam, as its guide and example do.

https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/compressing-models-during-training/quantization-aware-training-pytorch.html
https://github.com/openvinotoolkit/nncf/tree/develop/examples/quantization_aware_training/torch/resnet18
(its batches of 128 and its mirrored pictures as well, these where a mirrored picture keeps its class)
"""

import json
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
from torch.utils.data import DataLoader, TensorDataset

from edgeopt import models

model = models.load(Path("inputs/float"))
pictures = torch.from_numpy(np.load("inputs/calib.npy"))
quantized = nncf.quantize(model, nncf.Dataset(DataLoader(pictures)))
train = TensorDataset(
    torch.from_numpy(np.load("inputs/train.npy")), torch.from_numpy(np.load("inputs/train_labels.npy"))
)
flip = json.loads(Path("inputs/inputs.json").read_text())["flip"]
optimizer = torch.optim.Adam(quantized.parameters(), lr=1e-5)
criterion = torch.nn.CrossEntropyLoss()
quantized.train()
for _ in range(5):
    for images, labels in DataLoader(train, batch_size=128, shuffle=True):
        if flip:
            images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
        optimizer.zero_grad()
        criterion(quantized(images), labels).backward()
        optimizer.step()
converted = openvino.convert_model(quantized.eval(), example_input=pictures[:1], input=list(pictures[:1].shape))
openvino.save_model(converted, "model.xml", compress_to_fp16=False)
