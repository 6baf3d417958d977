"""Dropout, drop path, L1, label smoothing, BatchNorm frozen or trained: each changes what it says, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from test_train_parts import batch, tiny
from torch import Tensor, nn

from edgeopt import DataConfig, ModelConfig, TrainConfig, api
from edgeopt.errors import ConfigError, ModelError
from edgeopt.stages.preparation import regularization
from edgeopt.stages.training import TrainingPlan
from edgeopt.train.objectives import CrossEntropy, WithL1

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8, "layer_decay": 1.0, "augment": "none", "ema_decay": 0.0}
RESNET = ModelConfig(name="resnet18", pretrained=False)


def finetuned(pictures: Path, run: Path, model: ModelConfig = RESNET, **values: Any) -> Any:
    return api.finetune(
        DataConfig(path=str(pictures), image_size=32), model, TrainConfig(**{**QUICK, **values}), run=run
    )


def test_dropout_and_drop_path_are_in_the_model_that_is_trained(pictures: Path, tmp_path: Path) -> None:
    made = finetuned(pictures, tmp_path / "run", dropout=0.4, drop_path=0.3)
    model = made.load()
    assert model.drop_rate == 0.4
    paths = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert max(paths) == pytest.approx(0.3)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        assert not torch.equal(model.train()(images), model(images))
    assert made.architecture.arguments["drop_rate"] == 0.4


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("resnet18", {"dropout": 0.2}, {"drop_rate": 0.2}),
        ("torchvision:efficientnet_b0", {"drop_path": 0.1}, {"stochastic_depth_prob": 0.1}),
        ("torchvision:mobilenet_v2", {"dropout": 0.0}, {"dropout": 0.0}),
        ("mine:net", {"dropout": 0.2, "drop_path": 0.1}, {"dropout": 0.2, "drop_path": 0.1}),
        ("resnet18", {}, {}),
    ],
)
def test_the_constructors_argument_is_the_one_its_library_has(
    name: str, values: dict[str, float], expected: dict[str, float]
) -> None:
    assert regularization(ModelConfig(name=name), TrainConfig(**values)) == expected


def test_a_model_without_drop_path_and_values_given_twice_are_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="torchvision:resnet18 has no stochastic_depth_prob") as caught:
        finetuned(pictures, tmp_path / "a", ModelConfig(name="torchvision:resnet18", pretrained=False), drop_path=0.1)
    assert "leave train.drop_path out" in str(caught.value.fix)
    twice = ModelConfig(name="resnet18", pretrained=False, arguments={"drop_rate": 0.1})
    with pytest.raises(ConfigError, match=r"drop_rate is in model\.arguments and in train too"):
        finetuned(pictures, tmp_path / "b", twice, dropout=0.2)


def test_l1_is_the_sum_of_weights_but_not_of_norms_and_biases(pictures: Path, tmp_path: Path) -> None:
    model, (images, targets) = tiny().eval(), batch()
    plain = CrossEntropy()(model, images, targets)
    penalized = WithL1(CrossEntropy(), 0.01)(model, images, targets)
    weights = model[0].weight.abs().sum() + model[6].weight.abs().sum()
    assert float((penalized - plain).detach()) == pytest.approx(0.01 * float(weights.detach()), rel=1e-4)
    penalized.backward()
    with_l1 = model[1].bias.grad.clone()
    model.zero_grad()
    CrossEntropy()(model, images, targets).backward()
    assert torch.allclose(with_l1, model[1].bias.grad)
    sums = {}
    for l1 in (0.0, 0.01):
        trained = finetuned(pictures, tmp_path / f"l1-{l1}", l1=l1, weight_decay=0.0).load()
        sums[l1] = sum(float(p.detach().abs().sum()) for p in trained.parameters() if p.ndim > 1)
    assert sums[0.01] < 0.97 * sums[0.0]


def test_a_frozen_batchnorm_keeps_statistics_gains_and_biases(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = timm.create_model("resnet18", num_classes=3)
    for module in start.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    save_file(before, tmp_path / "start.safetensors")
    model = ModelConfig(name="resnet18", weights=str(tmp_path / "start.safetensors"))
    changed: dict[str, set[str]] = {}
    for batchnorm in ("frozen", "trained"):
        made = finetuned(pictures, tmp_path / batchnorm, model, batchnorm=batchnorm)
        after: dict[str, Tensor] = load_file(made.run.path / "host/float/model.safetensors")
        changed[batchnorm] = {name for name in before if not torch.equal(before[name], after[name])}
        assert all(parameter.requires_grad for parameter in made.load().parameters())
    norms = {name for name in before if "bn" in name or "downsample.1" in name}
    assert not changed["frozen"] & norms
    assert {name for name in before if "conv" in name} <= changed["frozen"]
    assert norms <= changed["trained"]


def test_label_smoothing_is_for_losses_that_take_soft_labels() -> None:
    def smoothing(**values: Any) -> float:
        return TrainingPlan.for_finetuning(TrainConfig(**values)).label_smoothing

    assert (smoothing(), smoothing(loss="weighted"), smoothing(loss="focal")) == (0.1, 0.1, 0.0)
    assert smoothing(label_smoothing=0.3) == 0.3
