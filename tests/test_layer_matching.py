"""Layers of a pruned network are compared, channel by channel, with what they were in the whole one."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from edgeopt.compress.reconstruct import matching_outputs
from edgeopt.compress.replay import replay
from edgeopt.config import CompressConfig
from edgeopt.stages.objective import objective_of
from edgeopt.stages.teachers import Teacher
from edgeopt.stages.training import TrainingPlan
from edgeopt.train.distillation import Asked, DecoupledKD, Dist, Distillation, Divergence, Hinton
from edgeopt.train.layer_matching import LayerMatching, Matched
from edgeopt.train.objectives import CrossEntropy
from edgeopt.train.processes import ALONE

HISTORY = [["0", True, [1, 4]]]
MATCHED = {"0": torch.tensor([0, 2, 3, 5]), "2": torch.arange(5)}


def whole() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def test_layers_that_narrow_are_matched_but_the_classifier() -> None:
    """The stem widens from 3 channels to 6: what it gives, the next layer takes up."""
    found = matching_outputs(whole(), HISTORY, example=torch.zeros(1, 3, 10, 10))
    assert {name: channels.tolist() for name, channels in found.items()} == {"2": [0, 1, 2, 3, 4]}
    cut_at_the_end = matching_outputs(whole(), [["2", True, [0, 3]]], example=torch.zeros(1, 3, 10, 10))
    assert {name: channels.tolist() for name, channels in cut_at_the_end.items()} == {"2": [1, 2, 4]}


def test_the_error_is_that_of_the_formula(images: Tensor) -> None:
    original, targets = whole(), torch.zeros(8, dtype=torch.long)
    cut = replay(copy.deepcopy(original), HISTORY, example=images[:1])
    plain = CrossEntropy()(cut, images, targets)
    found = LayerMatching(CrossEntropy(), Asked(original), MATCHED, weight=2.0)(cut, images, targets)
    with torch.no_grad():
        first, first_cut = original[0](images)[:, [0, 2, 3, 5]], cut[0](images)
        second, second_cut = original[:3](images), cut[:3](images)
        errors = [
            (ours - theirs).square().mean() / (theirs.var() + 0.01 * theirs.square().mean())
            for ours, theirs in ((first_cut, first), (second_cut, second))
        ]
    assert errors[0] == 0  # its inputs are all there
    assert found.item() == pytest.approx((plain + 2.0 * sum(errors) / 2).item(), rel=1e-5)


def test_only_what_was_cut_learns(images: Tensor) -> None:
    asked = Asked(whole())
    original = asked.like(images)
    cut = replay(whole(), HISTORY, example=images[:1]).train()
    objective = LayerMatching(CrossEntropy(), asked, MATCHED, weight=1000.0)
    optimizer = torch.optim.SGD(cut.parameters(), lr=1e-4)
    before = copy.deepcopy(original.state_dict())
    losses = []
    for _ in range(30):
        loss = objective(cut, images, torch.zeros(8, dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert not any(module._forward_hooks for module in (*cut.modules(), *original.modules()))


def test_linear_layers_on_maps_and_layers_that_run_twice_are_compared_with_themselves(images: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.last = nn.Conv2d(3, 6, 3), nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, pictures: Tensor) -> Tensor:
            rows = self.mix(self.stem(pictures).permute(0, 2, 3, 1))  # channels last, as in ConvNeXt
            answer: Tensor = self.last(self.mix(rows[:, ::2]).mean((1, 2)))
            return answer

    torch.manual_seed(0)
    original = Twice().eval()
    names = {name: torch.arange(6) for name in ("stem", "mix")}
    objective = LayerMatching(CrossEntropy(), Asked(original), names, weight=1.0)
    targets = torch.zeros(8, dtype=torch.long)
    assert objective(original, images, targets).item() == pytest.approx(
        CrossEntropy()(original, images, targets).item()
    )
    other = copy.deepcopy(original)
    with torch.no_grad():
        other.mix.weight.mul_(2)
    assert objective(other, images, targets) > CrossEntropy()(other, images, targets) + 0.1


def test_what_runs_otherwise_in_training_is_not_compared(images: Tensor) -> None:
    class Fewer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.aside, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

        def forward(self, pictures: Tensor) -> Tensor:
            maps = self.stem(pictures[:, :, ::2] if self.training else pictures)
            if self.training:
                self.aside(maps)
            answer: Tensor = self.last(maps.mean((2, 3)))
            return answer

    names = {name: torch.arange(6) for name in ("stem", "aside")}
    model, targets = Fewer().train(), torch.zeros(8, dtype=torch.long)
    found = LayerMatching(CrossEntropy(), Asked(Fewer()), names, weight=5.0)(model, images, targets)
    assert found.item() == pytest.approx(CrossEntropy()(model, images, targets).item())


@pytest.mark.parametrize("same", [True, False])
def test_recovery_matches_layers_and_shares_a_teacher_that_is_the_whole_network(images: Tensor, same: bool) -> None:
    original, targets = whole(), torch.zeros(8, dtype=torch.long)
    other = copy.deepcopy(original)
    with torch.no_grad():
        other[-1].weight.mul_(3)
    cut = replay(copy.deepcopy(original), HISTORY, example=images[:1])
    items = [SimpleNamespace(label=label, weight=1.0) for label in range(4)]
    workspace: Any = SimpleNamespace(dataset=SimpleNamespace(classes=list("abcd"), of=lambda split: items))
    teacher = Teacher("it", "whole" if same else "other", lambda spec: copy.deepcopy(original if same else other))
    plan = TrainingPlan.for_recovery(CompressConfig(match_weight=2.0))
    asked = objective_of(
        plan, cut, workspace, cast(Any, None), teacher=teacher, loader=cast(Any, SimpleNamespace(repeats=False)),
        processes=ALONE, attached=ExitStack(), matched=Matched(original, "whole", MATCHED),
    )  # fmt: skip
    assert isinstance(asked, LayerMatching)
    wanted = Distillation(original if same else other, Hinton(3.0))
    expected = LayerMatching(wanted, Asked(original), MATCHED, weight=2.0)
    assert asked(cut, images, targets).item() == pytest.approx(expected(cut, images, targets).item(), rel=1e-5)
    without = replace(plan, match_weight=0.0)
    plain = objective_of(
        without, cut, workspace, cast(Any, None), teacher=teacher, loader=cast(Any, SimpleNamespace(repeats=False)),
        processes=ALONE, attached=ExitStack(), matched=Matched(original, "whole", MATCHED),
    )  # fmt: skip
    assert isinstance(plain, Distillation)


@pytest.mark.parametrize(
    ("distill", "divergence"), [("hinton", Hinton(2.5)), ("dkd", DecoupledKD(2.5)), ("dist", Dist(2.5))]
)
def test_a_training_is_taught_in_the_way_and_with_the_weight_that_are_stated(
    distill: str, divergence: Divergence, images: Tensor
) -> None:
    teacher, student, targets = whole(), copy.deepcopy(whole()), torch.zeros(8, dtype=torch.long)
    with torch.no_grad():
        student[-1].weight.mul_(3)
    items = [SimpleNamespace(label=label, weight=1.0) for label in range(4)]
    workspace: Any = SimpleNamespace(dataset=SimpleNamespace(classes=list("abcd"), of=lambda split: items))
    config = CompressConfig(distill=distill, temperature=2.5, distill_weight=0.6)  # type: ignore[arg-type]
    for plan in (TrainingPlan.for_qat(config), replace(TrainingPlan.for_recovery(config), match_weight=0.0)):
        asked = objective_of(
            plan, student, workspace, cast(Any, None), teacher=Teacher("it", "it", lambda spec: teacher),
            loader=cast(Any, SimpleNamespace(repeats=False)), processes=ALONE, attached=ExitStack(),
        )  # fmt: skip
        expected = Distillation(teacher, divergence, weight=0.6)
        assert asked(student, images, targets).item() == pytest.approx(expected(student, images, targets).item())


@pytest.mark.parametrize("shared", [True, False])
def test_a_teacher_that_is_the_whole_network_is_asked_once(images: Tensor, shared: bool) -> None:
    calls = []
    asked = Asked(whole())
    asked.like(images).register_forward_hook(lambda *_: calls.append(1))
    inner = Distillation(asked if shared else whole())
    cut = replay(whole(), HISTORY, example=images[:1])
    objective = LayerMatching(inner, asked, MATCHED, weight=1.0, asks=shared)
    value = objective(cut, images, torch.zeros(8, dtype=torch.long))
    assert len(calls) == 1
    assert value.item() == pytest.approx(
        LayerMatching(inner, Asked(whole()), MATCHED, weight=1.0)(cut, images, torch.zeros(8, dtype=torch.long)).item()
    )
