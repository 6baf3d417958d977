"""Transfer learning: the head first, then the rest at once or by layers; what is frozen has no gradient at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from test_cli import edgeopt
from test_train import STEPS, Killed, batches, equal, killed_in, one_way, run, tiny
from torch import Tensor, nn

from edgeopt import DataConfig, ModelConfig, Recipe, TrainConfig, api
from edgeopt.config import validate
from edgeopt.errors import ConfigError
from edgeopt.train.config import LoopConfig
from edgeopt.train.freezing import Freezing, depths, open_layers
from edgeopt.train.lr_range import find_lr
from edgeopt.train.objectives import CrossEntropy

__all__ = ["one_way"]  # a fixture used by all tests here


def small() -> nn.Module:
    """timm's tiny ResNet: a stem, four blocks and a head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=3)


def watched(model: nn.Module, seen: list[set[str]]) -> Callable[[int, int], Iterator[tuple[Tensor, Tensor]]]:
    """The batches; ``seen`` gets the names of the parameters that have a gradient after each step."""

    def make(epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches(epoch, first):
            yield batch
            names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
            if names:  # the speed probe takes batches too, but trains a copy
                seen.append(names)

    return make


def test_layers_are_the_ones_layer_decay_counts() -> None:
    from timm.optim import param_groups_layer_decay

    for name in ("test_resnet", "test_vit", "test_efficientnet", "resnet18"):
        model = timm.create_model(name, num_classes=3)
        scales = {
            id(parameter): group["lr_scale"]
            for group in param_groups_layer_decay(model, layer_decay=0.5)
            for parameter in group["params"]
        }
        depth = depths(model)
        assert {name for name, _ in model.named_parameters()} == set(depth)
        assert all(0.5 ** depth[name] == scales[id(parameter)] for name, parameter in model.named_parameters()), name
        assert {key for key, value in depth.items() if value == 0} == {
            f"{model.pretrained_cfg['classifier']}.{part}" for part in ("weight", "bias")
        } or name == "test_vit"  # whose last norm belongs to the head


def test_the_head_of_a_model_without_linear_layers_is_its_last_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1))
    assert {name for name, depth in depths(model).items() if depth == 0} == {"2.weight", "2.bias"}


@pytest.mark.parametrize("head_epochs", [0.5, 2.0])
def test_the_head_is_trained_alone_for_as_many_steps_as_was_said(tmp_path: Path, head_epochs: float) -> None:
    model, seen = tiny(), []
    everything = {name for name, _ in model.named_parameters()}
    run(model, tmp_path, epochs=4, head_epochs=head_epochs, batches=watched(model, seen))
    alone = round(head_epochs * STEPS)
    assert seen == [{"6.weight", "6.bias"}] * alone + [everything] * (4 * STEPS - alone)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_backbone_keeps_its_statistics_too_and_is_not_run_backward(tmp_path: Path) -> None:
    start, model, seen = tiny().state_dict(), tiny(), []
    graphs: list[bool] = []
    model[4].register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    result = run(model, tmp_path, unfreeze="none", ema_decay=0.0, batches=watched(model, seen))
    assert seen == [{"6.weight", "6.bias"}] * 4 * STEPS
    assert not any(graphs)
    assert result.best_epoch > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]) != name.startswith("6."), name
    again, unfrozen = tiny(), []
    again[4].register_forward_hook(lambda module, inputs, output: unfrozen.append(output.requires_grad))
    run(again, tmp_path / "all", ema_decay=0.0)
    assert any(unfrozen)
    assert not torch.equal(again.state_dict()["1.running_mean"], start["1.running_mean"])


def test_gradual_opens_one_layer_after_another_from_the_head_down_at_even_intervals(tmp_path: Path) -> None:
    model, seen = small(), []
    depth = depths(model)
    layers = 1 + max(depth.values())
    assert layers > 4
    run(model, tmp_path, epochs=4, unfreeze="gradual", batches=watched(model, seen))
    opened = [max(depth[name] for name in names) + 1 for names in seen]
    for names, count in zip(seen, opened, strict=True):
        assert names == {name for name, value in depth.items() if value < count}
    assert opened[0] == 1
    assert opened == sorted(opened)
    assert set(opened) == set(range(1, layers + 1))
    assert opened.index(layers) == 2 * STEPS  # half of the training


def test_where_each_layer_opens() -> None:
    def opened(**values: Any) -> list[int]:
        config = LoopConfig(epochs=10, **values)
        return [open_layers(step, config, layers=5, steps_per_epoch=4) for step in range(40)]

    assert opened(unfreeze="gradual") == [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5 + [5] * 20
    after = opened(unfreeze="gradual", head_epochs=2)
    assert after == [1] * 8 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 20
    assert opened(head_epochs=2.5) == [1] * 10 + [5] * 30
    assert opened(unfreeze="none") == [1] * 40
    model = small()
    freezing = Freezing(model, LoopConfig(epochs=10, head_epochs=5), steps_per_epoch=4)
    assert freezing.share() == 0.5
    freezing.apply(0)
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 2


@pytest.mark.parametrize("values", [{"head_epochs": 1.5}, {"unfreeze": "gradual"}, {"unfreeze": "none"}])
def test_killed_in_any_phase_and_resumed_gives_the_same_weights_to_the_bit(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    undisturbed, resumed = small(), small()
    run(undisturbed, tmp_path / "whole", **values)
    for epoch in (0, 1, 2):
        with pytest.raises(Killed):
            run(small(), tmp_path / "cut", **values, batches=killed_in(epoch))
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()  # everything must come from the checkpoint
    run(resumed, tmp_path / "cut", **values)
    assert equal(undisturbed, resumed)
    assert not equal(undisturbed, small())


def test_what_was_frozen_before_stays_so_and_the_range_test_trains_what_training_will(tmp_path: Path) -> None:
    model = tiny()
    model[1].weight.requires_grad_(False)
    run(model, tmp_path, head_epochs=1)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["1.weight"]

    seen: list[set[str]] = []

    def objective(trial: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        seen.append({name for name, parameter in trial.named_parameters() if parameter.requires_grad})
        return CrossEntropy()(trial, images, targets)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in range(100):
            yield from batches(epoch)

    config = LoopConfig(epochs=3, layer_decay=1.0, optimizer="momentum", ema_decay=0.0, unfreeze="none")
    find_lr(tiny(), endless(), objective, config)
    assert all(names == {"6.weight", "6.bias"} for names in seen)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    save_file(small().state_dict(), path)
    return path


def test_finetune_as_a_linear_probe_changes_the_head_alone(pictures: Path, weights: Path, tmp_path: Path) -> None:
    made = api.finetune(
        DataConfig(path=str(pictures), image_size=32),
        ModelConfig(name="test_resnet", weights=str(weights)),
        TrainConfig(epochs=2, batch_size=8, unfreeze="none", augment="none"),
        run=tmp_path / "run",
    )
    before, after = load_file(weights), load_file(made.run.path / "host/float/model.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}


def test_freezing_that_contradicts_itself_is_refused_at_once(tmp_path: Path) -> None:
    def problems(train: dict[str, Any], model: dict[str, Any] | None = None) -> str:
        with pytest.raises(ConfigError) as caught:
            validate(Recipe, {"data": {"path": "x"}, "train": train, "model": model or {}}, where="recipe")
        return str(caught.value)

    never = {"unfreeze": "none", "layer_decay": 0.8, "head_epochs": 2, "batchnorm": "trained"}
    said = problems(never, {"pretrained": False})
    assert "recipe: 4 problems" in said
    for key in ("train.layer_decay", "train.head_epochs", "train.batchnorm", "model.pretrained"):
        assert f"{key}: " in said
    assert 'train.unfreeze "none" never trains the backbone' in said
    assert "in all 3 epochs" in problems({"epochs": 3, "head_epochs": 3})
    validate(Recipe, {"data": {"path": "x"}, "train": {"unfreeze": "none"}}, where="recipe")
    own = {"name": "mine:net", "pretrained": False}  # may load weights of its own
    validate(Recipe, {"data": {"path": "x"}, "train": {"unfreeze": "none"}, "model": own}, where="recipe")
    validate(Recipe, {"data": {"path": "x"}, "train": {"unfreeze": "gradual", "layer_decay": 0.8}}, where="recipe")
    with pytest.raises(ConfigError, match=r"train\.layer_decay"):
        api.finetune("nowhere", None, TrainConfig(unfreeze="none", layer_decay=0.5))
    done = edgeopt("finetune", "nowhere", "--unfreeze", "none", "--head-epochs", "2", cwd=tmp_path)
    assert done.returncode == 1
    assert "train.head_epochs: says when the backbone follows" in done.stderr
