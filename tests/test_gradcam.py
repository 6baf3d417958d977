"""Grad-CAM points at what decided: planted evidence in a convolutional network and a vision transformer."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from edgeopt.train.gradcam import gradcam


class Corner(nn.Module):
    """Class 1 is the mean of what is bright, by a fixed convolution, an in-place ReLU and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.ReLU(inplace=True), nn.MaxPool2d(4))
        nn.init.constant_(self.features[0].weight, 0.1)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


def bright(row: slice, column: slice) -> np.ndarray:
    picture = np.zeros((3, 32, 32), np.float32)
    picture[:, row, column] = 1
    return picture


def test_the_evidence_is_where_it_was_put() -> None:
    found = gradcam(Corner(), bright(slice(0, 8), slice(24, 32)), 1)
    assert found is not None
    assert found.shape == (8, 8)
    assert found.max() == 1
    assert found[:2, 6:].mean() > 0.8
    assert found[4:, :4].max() == 0


def test_nothing_speaks_for_an_answer_that_everything_speaks_against() -> None:
    assert gradcam(Corner(), bright(slice(0, 8), slice(24, 32)), 0) is None


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_real_networks_give_a_map_and_are_left_as_they_were(name: str) -> None:
    size = {"img_size": 64} if "vit" in name else {}
    model = timm.create_model(name, num_classes=4, **size).train()
    pictures = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32)
    answered = [gradcam(model, picture, answer) for picture in pictures for answer in range(4)]
    found = [one for one in answered if one is not None]
    assert found
    assert all(one.ndim == 2 and one.min() >= 0 and one.max() == 1 for one in found)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_places_has_no_map() -> None:
    assert gradcam(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), np.ones((3, 2, 2), np.float32), 0) is None
