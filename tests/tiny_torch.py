"""A small network with what real ones have: depthwise, residual, clipped ReLU, max pool, uneven padding, BatchNorm."""

from __future__ import annotations

import math
from itertools import pairwise

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


class PlainNet(nn.Module):
    """3 x 32 x 32 pictures to ``num_classes`` logits, four convolutions in a row: what int8 loses in one is lost."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        widths = (3, 16, 32, 32, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def uneven_channels(net: PlainNet, factor: float, layers: tuple[int, ...]) -> None:
    """Channels behind each of ``layers`` made 1 to ``factor`` times as large and read as much more softly, in place.

    The float answers stay the same; one range for all channels then leaves the quiet ones next to no int8 codes.
    """
    with torch.no_grad():
        for layer in layers:
            norm, reader = net.norms[layer], net.convs[layer + 1]
            scale = torch.logspace(0, math.log10(factor), norm.num_features)
            norm.weight.mul_(scale)
            norm.bias.mul_(scale)
            reader.weight.div_(scale.view(1, -1, 1, 1))
