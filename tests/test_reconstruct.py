"""After a cut, layers are fitted anew to what they gave before: exactly where what is left tells what is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from edgeopt.compress import reconstruct as module
from edgeopt.compress.depth import dropped
from edgeopt.compress.prune import prune, replay
from edgeopt.compress.reconstruct import Kept, kept_channels, reconstruct
from edgeopt.train.soup import refresh_batchnorm


class Twins(nn.Module):
    """The last four channels of ``first`` are mixtures of its first four; ``reader`` reads all eight."""

    def __init__(self, reader: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.reader = reader(8)
        self.after = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(6, 5)
        mix = torch.rand(4, 4)
        with torch.no_grad():
            self.first.weight[4:] = torch.einsum("ij,jckl->ickl", mix, self.first.weight[:4])
            self.first.bias[4:] = mix @ self.first.bias[:4]  # type: ignore[index]

    def forward(self, pictures: Tensor) -> Tensor:
        answer: Tensor = self.last(self.after(self.reader(self.first(pictures))))
        return answer


READERS: dict[str, Callable[[int], nn.Module]] = {
    "pointwise": lambda width: nn.Conv2d(width, 6, 1),
    "without a bias, before BatchNorm": lambda width: nn.Sequential(
        nn.Conv2d(width, 6, 1, bias=False), nn.BatchNorm2d(6)
    ),
    "of places, with a stride": lambda width: nn.Conv2d(width, 6, 3, stride=2, padding=1),
    "dilated": lambda width: nn.Conv2d(width, 6, 3, dilation=2, padding=2),
    "reflected": lambda width: nn.Conv2d(width, 6, 3, padding=1, padding_mode="reflect"),
    "padding by name": lambda width: nn.Conv2d(width, 6, 5, padding="same"),
    "TensorFlow's padding": lambda width: Conv2dSame(width, 6, 3, stride=2),
    "behind a depthwise one": lambda width: nn.Sequential(
        nn.Conv2d(width, width, 1, groups=width), nn.Conv2d(width, 6, 1)
    ),
}


@pytest.fixture
def pictures() -> list[Tensor]:
    return list(torch.randn(4, 16, 3, 12, 12, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(autouse=True)
def hardly_any_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RIDGE", 1e-9)


@pytest.mark.parametrize("reader", READERS)
def test_what_the_inputs_left_tell_is_given_to_the_bit_of_rounding(reader: str, pictures: list[Tensor]) -> None:
    torch.manual_seed(0)
    whole, shown = Twins(READERS[reader]).eval(), torch.cat(pictures)
    refresh_batchnorm(whole, [shown])
    history = [["first", True, [4, 5, 6, 7]]]
    cut = replay(copy.deepcopy(whole), history, example=pictures[0][:1])
    with torch.no_grad():
        expected, without = whole(pictures[0]), cut(pictures[0])
        assert (without - expected).abs().max() > 0.02  # what there is to repair
        # The reader, and the layer after it, which finds nothing left to mend; a depthwise one before it does neither.
        assert reconstruct(whole, cut, history, pictures) == 2
        refresh_batchnorm(cut, [shown])
        torch.testing.assert_close(cut(pictures[0]), expected, rtol=1e-3, atol=1e-3)


def test_a_linear_layer_after_flattened_maps_is_fitted_too(pictures: list[Tensor]) -> None:
    torch.manual_seed(0)
    whole = Twins(lambda width: nn.Conv2d(width, width, 1, groups=width)).eval()
    whole.after, whole.last = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), nn.Linear(32, 5)
    history = [["first", True, [4, 5, 6, 7]]]
    cut = replay(copy.deepcopy(whole), history, example=pictures[0][:1])
    with torch.no_grad():
        expected = whole(pictures[0])
        assert (cut(pictures[0]) - expected).abs().max() > 0.02
        assert reconstruct(whole, cut, history, pictures) == 1
        torch.testing.assert_close(cut(pictures[0]), expected, rtol=1e-3, atol=1e-3)


def test_the_channels_that_are_left_are_found_whatever_the_cuts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 6, 1), nn.Flatten())
    model.append(nn.Linear(24, 4))
    history = [["0", True, [1, 6]], ["3", True, [0, 4]], ["0", True, [0]]]  # the last of what was left: 0 2 3 4 5 7
    found = kept_channels(model, history, example=torch.zeros(1, 3, 2, 2))
    assert {name: (kept.outputs.tolist(), kept.inputs.tolist()) for name, kept in found.items()} == {
        "0": ([2, 3, 4, 5, 7], [0, 1, 2]),
        "2": ([2, 3, 4, 5, 7], [0]),  # depthwise
        "3": ([1, 2, 3, 5], [2, 3, 4, 5, 7]),
        "5": ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23]),
    }


def test_a_pruned_network_answers_more_like_the_whole_one_on_pictures_that_it_was_not_fitted_on() -> None:
    import timm

    torch.manual_seed(0)
    whole = timm.create_model("test_resnet", num_classes=10).eval()
    seen, unseen = torch.randn(2, 4, 32, 3, 32, 32).unbind()
    result = prune(whole, fraction=0.4, example=torch.zeros(1, 3, 32, 32), importance="l2", round_to=2)
    fitted = copy.deepcopy(result.model)
    before = copy.deepcopy(whole.state_dict())
    assert reconstruct(whole, fitted, result.history, seen) > 5
    with torch.no_grad():
        expected = whole(unseen[0])
        plain, better = ((one(unseen[0]) - expected).pow(2).mean() for one in (result.model, fitted))
    assert better < 0.7 * plain
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert not any(one._forward_hooks for one in whole.modules())
    assert not any(one._forward_pre_hooks for one in fitted.modules())


def test_a_layer_mends_what_those_before_it_could_not(pictures: list[Tensor]) -> None:
    """Of the second convolution nothing was cut: only its inputs, as the first can now make them, are others."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    whole.extend([nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)])
    history = [["0", True, [5, 6, 7]]]
    cut = replay(copy.deepcopy(whole), history, example=pictures[0][:1])
    alone = copy.deepcopy(cut)
    with torch.no_grad():
        assert reconstruct(whole, cut, history, pictures) == 3
        alone[2].load_state_dict(cut[2].state_dict())  # the only layer that lost inputs
        expected = whole(pictures[0])
        assert (cut(pictures[0]) - expected).pow(2).mean() < 0.6 * (alone(pictures[0]) - expected).pow(2).mean()


def test_a_depthwise_layer_is_fitted_channel_by_channel(
    pictures: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels are found again from what it gave, though they were halved."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 3, groups=6, stride=2)]
    before = nn.Sequential(*layers, nn.Flatten(), nn.Linear(150, 4)).eval()
    history = [["0", True, [7]], ["2", True, [1]]]
    cut = replay(copy.deepcopy(before), history, example=pictures[0][:1])
    monkeypatch.setattr(module, "_CHANNELS", 2)
    with torch.no_grad():
        cut[3].weight.mul_(0.5)
        expected = before[:4](pictures[0])[:, [0, 2, 3, 4, 5]]
        assert (cut[:4](pictures[0]) - expected).abs().max() > 0.1
        assert reconstruct(before, cut, history, pictures) == 4
        torch.testing.assert_close(cut[:4](pictures[0]), expected, rtol=1e-3, atol=1e-3)


def test_only_so_many_pictures_go_through_at_once(monkeypatch: pytest.MonkeyPatch, pictures: list[Tensor]) -> None:
    whole = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1))
    monkeypatch.setattr(module, "MOST_VALUES", 20 * 8 * 12 * 12 + 1)
    shown = module._at_once(whole, iter(pictures))
    assert shown is not None
    assert torch.equal(shown, torch.cat(pictures)[:20])
    monkeypatch.setattr(module, "MOST_VALUES", 1)
    shown = module._at_once(whole, iter(pictures))
    assert shown is not None
    assert len(shown) == 1


def test_what_is_kept_of_all_layers_is_bounded(monkeypatch: pytest.MonkeyPatch, pictures: list[Tensor]) -> None:
    torch.manual_seed(0)
    whole = Twins(READERS["pointwise"]).eval()
    history, kept = [["first", True, [4, 5, 6, 7]]], []
    cut = replay(copy.deepcopy(whole), history, example=pictures[0][:1])
    fit = module._Goal.fit

    def noted(self: Any, *args: Any, **more: Any) -> bool:
        kept.append(self._outputs.numel())
        return fit(self, *args, **more)

    monkeypatch.setattr(module._Goal, "fit", noted)
    monkeypatch.setattr(module, "MOST_KEPT", 3000)
    assert reconstruct(whole, cut, history, pictures) == 2
    assert sum(kept) <= 3000


def test_after_a_dropped_block_all_layers_are_fitted(pictures: list[Tensor]) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x).relu()

    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 8, 3), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    history = dropped(["1"])
    cut = replay(copy.deepcopy(whole.eval()), history)
    with torch.no_grad():
        expected = whole(pictures[0])
        plain = (cut(pictures[0]) - expected).pow(2).mean()
        assert reconstruct(whole, cut, history, pictures) == 3
        assert (cut(pictures[0]) - expected).pow(2).mean() < 0.2 * plain


def test_without_batchnorm_a_layer_without_a_bias_makes_up_for_the_mean_too(pictures: list[Tensor]) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 6, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    whole = nn.Sequential(*layers, nn.Linear(6, 4)).eval()
    history = [["0", True, [5, 6, 7]]]
    cut = replay(copy.deepcopy(whole), history, example=pictures[0][:1])
    with torch.no_grad():
        assert reconstruct(whole, cut, history, pictures) == 2
        apart = (cut[:3](pictures[0]) - whole[:3](pictures[0])).mean((0, 2, 3))
        assert apart.abs().max() < 0.01


def test_layers_that_are_more_than_their_weight_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Conv2d):
        def forward(self, pictures: Tensor) -> Tensor:
            return super().forward(pictures) * 2

    kept = Kept(torch.arange(6), torch.arange(4))
    others: list[Any] = [Scaled(8, 6, 1), weight_norm(nn.Conv2d(8, 6, 1)), nn.Conv2d(8, 6, 1, groups=2)]
    assert not any(module._is_plain(one) for one in others)
    assert module._may_be_fitted(nn.Conv2d(8, 6, 1), kept)
    monkeypatch.setattr(module, "MOST_INPUTS", 35)
    assert not module._may_be_fitted(nn.Conv2d(8, 6, 3), kept)
    assert reconstruct(nn.Identity(), nn.Identity(), [], []) == 0
