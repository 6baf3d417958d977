"""A small network with what real ones have: depthwise, residual, clipped ReLU, max pool, uneven padding, BatchNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TinyNet(nn.Module):
    """3 x 32 x 32 pictures to 4 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.project = nn.Conv2d(8, 8, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16, 4)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))
        x = self.pool(F.relu(self.stem_norm(self.stem(x))))
        shortcut = x
        x = F.relu(self.expand(x))
        x = F.relu6(self.depthwise_norm(self.depthwise(x)))
        x = self.project_norm(self.project(x))
        x += shortcut
        x = F.relu(self.wide(x))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.head(self.drop(x))
        return logits


def tiny_net() -> TinyNet:
    """A TinyNet in eval mode with BatchNorm statistics of its own pictures, some gains negative and one zero."""
    torch.manual_seed(0)
    net = TinyNet().train()
    for norm in (net.stem_norm, net.depthwise_norm, net.project_norm):
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 1.0)
    with torch.no_grad():
        net.depthwise_norm.weight[0] = 0.0
        for _ in range(5):
            for batch in calibration():
                net(batch)
    return net.eval()


def calibration() -> list[Tensor]:
    """Three batches of eight smooth pictures, float32 [8, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.randn(8, 3, 4, 4, generator=generator) for _ in range(3)]
    return [F.interpolate(batch, size=(32, 32), mode="bilinear") for batch in coarse]
