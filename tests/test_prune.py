"""Pruning removes channels for real: parameters, MACs and the file shrink as asked; the history rebuilds the model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeopt.compress.graph import bounded, is_layer, trace
from edgeopt.compress.proof import proven
from edgeopt.compress.prune import Importance, PruneResult, cuts, plans, prunable, prune, replay
from edgeopt.config import CompressConfig, validate
from edgeopt.errors import ConfigError, ModelError
from edgeopt.models import create, load, rebuild, save
from edgeopt.models.macs import count_macs, count_parameters

SIZE = 48
NETWORKS = ("tf_efficientnet_lite0", "resnet18", "mobilenetv2_100")


def batches(count: int = 2, *, channels: int = 3, size: int = SIZE) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, channels, size, size, generator=generator), torch.randint(0, 5, (4,), generator=generator))
        for _ in range(count)
    ]


class Plain(nn.Module):
    """Convolution, depthwise, grouped and pointwise convolutions with a residual: every case that is counted apart."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(32, 96, 1, bias=False), nn.BatchNorm2d(96), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(96, 96, 3, 1, 1, groups=96, bias=False), nn.BatchNorm2d(96), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(96, 32, 1, bias=False), nn.BatchNorm2d(32))
        self.widen = nn.Sequential(nn.Conv2d(32, 64, 1), nn.ReLU())
        self.grouped = nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1, groups=4), nn.ReLU())
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.classifier(self.grouped(self.widen(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    torch.manual_seed(0)
    return Plain().eval()


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    name = str(request.param)
    return name, create(name, num_classes=5, pretrained=name in ("tf_efficientnet_lite0",)).model


def check(result: PruneResult, model: nn.Module, example: torch.Tensor, fraction: float) -> None:
    """What must be true of any result: counted again here, not taken from it."""
    assert result.macs_before == count_macs(model, example.shape)
    assert result.macs_after == count_macs(result.model, example.shape)
    assert result.removed == pytest.approx(fraction, abs=0.02)
    assert result.parameters_before == count_parameters(model)
    assert result.parameters_after == count_parameters(result.model) < result.parameters_before
    assert zero_filters(result.model) <= zero_filters(model), "channels were masked, not removed"
    for name, (before, after) in result.widths.items():
        module = result.model.get_submodule(name)
        assert module.weight.shape[0] == after <= before == model.get_submodule(name).weight.shape[0]
        assert (name in result.untouched) == (after == before)


def zero_filters(model: nn.Module) -> int:
    """Convolution outputs whose weights are all zero; ImageNet's lite0 has some of its own."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return sum(int(module.weight.eq(0).flatten(1).all(1).sum()) for module in convolutions)


def test_networks_get_smaller_and_come_back_bit_equal(network: tuple[str, nn.Module], tmp_path: Path) -> None:
    name, model = network
    state = copy.deepcopy(model.state_dict())
    example = torch.zeros(1, 3, SIZE, SIZE)
    result = prune(model, fraction=0.4, example=example, gradient_batches=batches())
    check(result, model, example, 0.4)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items()), "the input was changed"
    assert not any(parameter.grad is not None for parameter in (*model.parameters(), *result.model.parameters()))
    assert all(after % 8 == 0 for before, after in result.widths.values() if after != before)
    assert min(after / before for before, after in result.widths.values()) >= 0.3

    if name == "resnet18":  # its residual branches start switched off, and would score zero
        assert result.widths["layer3.0.conv1"][1] < 256

    head = "fc" if name == "resnet18" else "classifier"
    assert result.widths[head] == (5, 5)
    assert result.untouched[head] == "classifier"
    with torch.no_grad():
        for count in (1, 3):
            assert result.model(torch.randn(count, 3, SIZE, SIZE)).shape == (count, 5)
        assert result.model(torch.randn(2, 3, 64, 80)).shape == (2, 5), "another picture size"

    whole = create(name, num_classes=5, pretrained=False, image_size=SIZE).architecture
    smaller = whole.pruned(json.loads(json.dumps(result.history)))
    save(model, whole, tmp_path / "before")
    save(result.model, smaller, tmp_path / "after")
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("before", "after")]
    assert sizes[1] < 0.9 * sizes[0]
    loaded = load(tmp_path / "after")
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), result.model(pictures))


@pytest.mark.parametrize("fraction", [0.15, 0.5])
@pytest.mark.parametrize("importance", ["taylor", "l1", "l2"])
def test_the_fraction_asked_for_is_removed(plain: nn.Module, fraction: float, importance: Importance) -> None:
    example = torch.zeros(1, 3, SIZE, SIZE)
    result = prune(
        plain, fraction=fraction, example=example, round_to=2, importance=importance, gradient_batches=batches(3)
    )
    check(result, plain, example, fraction)
    pruned = result.model
    depthwise, grouped = pruned.get_submodule("depthwise.0"), pruned.get_submodule("grouped.0")
    assert depthwise.groups == depthwise.weight.shape[0] == pruned.get_submodule("expand.0").weight.shape[0]
    assert grouped.groups == 4
    assert grouped.weight.shape[0] % 4 == 0
    fresh = replay(Plain().eval(), result.history)
    fresh.load_state_dict(pruned.state_dict())
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(fresh(pictures), pruned(pictures))


def test_batchnorm_factors_as_importance() -> None:
    """Only groups with a BatchNorm can be judged by it; the others say so."""
    torch.manual_seed(0)
    model = Plain().eval()
    with torch.no_grad():
        model.expand[1].weight[:48] = 0.01
    example = torch.zeros(1, 3, SIZE, SIZE)
    result = prune(model, fraction=0.3, example=example, importance="bn_scale")
    check(result, model, example, 0.3)
    cut = next(channels for name, _, channels in result.history if name in ("expand.0", "depthwise.0"))
    assert set(cut) <= set(range(48))
    assert result.untouched["widen.0"] == "its group has no BatchNorm to judge it by"


@pytest.mark.parametrize("importance", ["taylor", "l1", "l2"])
def test_the_channels_that_do_nothing_go_first(importance: Importance) -> None:
    """Half of the middle layer's channels are made useless; they, and no others, are cut."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()  # fmt: skip
    useless = list(range(0, 32, 2))
    with torch.no_grad():
        model[2].weight[useless] *= 1e-4
        model[2].bias[useless] *= 1e-4
        model[6].weight[:, useless] *= 1e-4
    result = prune(
        model, fraction=0.44, example=torch.zeros(1, 3, 16, 16), importance=importance, round_to=16,
        gradient_batches=batches(size=16), ignored=["0"],
    )  # fmt: skip
    assert result.history == [["2", True, useless]]
    assert result.untouched["0"] == "ignored on request"
    pictures = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(model(pictures), result.model(pictures), atol=1e-4)


def test_blocks_of_a_grouped_convolution_lose_the_same_channels() -> None:
    """The first half of every block of four is useless, and goes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3, groups=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, 5),
    ).eval()  # fmt: skip
    useless = [block * 16 + channel for block in range(4) for channel in range(8)]
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias, model[2].weight, model[2].bias, model[6].weight.T):
            parameter[useless] *= 1e-4
    example = torch.zeros(1, 3, 16, 16)
    result = prune(model, fraction=0.7, example=example, importance="l2", round_to=32)
    assert [cut[1:] for cut in result.history] == [[True, useless]] * len(result.history)
    assert result.widths == {"0": (64, 32), "2": (64, 32), "6": (5, 5)}
    pictures = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(model(pictures), result.model(pictures), atol=1e-4)


def test_taylor_looks_at_the_data_and_not_at_the_size_of_weights() -> None:
    """A channel with large weights that the classifier hardly uses is the one to go."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight[:8] *= 4
        model[4].weight[:, :8] *= 1e-3
    example = torch.zeros(1, 3, 16, 16)
    taylor = prune(model, fraction=0.5, example=example, gradient_batches=batches(size=16))
    norms = prune(model, fraction=0.5, example=example, importance="l2")
    assert taylor.history == [["0", True, list(range(8))]]
    assert norms.history == [["0", True, list(range(8, 16))]]


def test_taylor_is_not_blind_to_gradients_that_cancel_each_other() -> None:
    """As they do where training has converged: the loud channels' point the opposite way in the other batch."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[:8, 0] = 1.0  # of red, which is the same in both pictures
        model[0].weight[8:, 1] = 0.3  # of green, whose sign tells the classes apart
        model[3].weight.copy_(torch.tensor([[0.01], [-0.01]]).expand(2, 16))
        model[3].bias.zero_()
    red, green = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([0, 1.0, 0]).view(1, 3, 1, 1)
    opposite = [((red + sign * green).expand(1, 3, 8, 8), torch.tensor([label])) for sign, label in ((1, 0), (-1, 1))]
    result = prune(model.eval(), fraction=0.5, example=torch.zeros(1, 3, 8, 8), gradient_batches=opposite)
    assert result.history == [["0", True, list(range(8, 16))]]


def test_l1_and_l2_are_the_norms_they_are_called() -> None:
    """Weights of one large value have the smaller sum, those of many small values the smaller sum of squares."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        model[0].weight.fill_(0.15)
        model[0].weight[:8] = 0.0
        model[0].weight[:8, 0, 0, 0] = 1.0
        model[3].weight.fill_(1e-3)
    example = torch.zeros(1, 3, 16, 16)
    gone = {"l1": list(range(8)), "l2": list(range(8, 16))}
    for importance, channels in gone.items():
        result = prune(model.eval(), fraction=0.5, example=example, importance=importance)  # type: ignore[arg-type]
        assert result.history == [["0", True, channels]]


def test_no_layer_loses_more_than_its_cap_however_little_its_channels_matter(plain: nn.Module) -> None:
    model = copy.deepcopy(plain)
    with torch.no_grad():
        model.widen[0].weight[:56] *= 1e-4  # type: ignore[index, union-attr]
        model.grouped[0].weight[:56] *= 1e-4  # type: ignore[index, union-attr]
    example = torch.zeros(1, 3, SIZE, SIZE)
    for most in (0.25, 0.5):
        found = prunable(model, example=example, importance="l2", round_to=4, max_layer_fraction=most)
        result = found.cut([(group, group.cut(len(group.scores))) for group in found.groups])
        shares = [after / before for before, after in result.widths.values()]
        assert min(shares) == pytest.approx(1 - most)
        with pytest.raises(ModelError, match="cannot be removed, at most"):
            cuts(found, fraction=0.85, round_to=4, comparable=False)


def test_cuts_are_made_where_they_cost_the_least_importance_for_their_macs() -> None:
    """Channels of a large map and of a small one that matter alike: those of the large one save 64 times as much."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(8)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    found = prunable(model, example=torch.zeros(1, 3, SIZE, SIZE), importance="l2", round_to=4)
    for group in found.groups:
        group.scores.fill_(1.0)
        object.__setattr__(group, "mean", 1.0)
    ways = plans(found, fraction=0.4, round_to=4, comparable=True)
    assert list(ways) == ["one ratio", "importance per MAC"]
    lost = {way: {group.name: units / len(group.scores) for group, units in plan} for way, plan in ways.items()}
    assert lost["one ratio"]["0"] == pytest.approx(lost["one ratio"]["5"], abs=0.15)
    assert set(lost["importance per MAC"]) <= {"0", "2"}
    for plan in ways.values():  # the one Prunable makes both
        result = found.cut(plan)
        assert result.removed == pytest.approx(0.4, abs=0.02)
        assert result.macs_after == count_macs(result.model, (1, 3, SIZE, SIZE))
    # Norms of different layers say nothing about each other.
    assert list(plans(found, fraction=0.4, round_to=4, comparable=False)) == ["one ratio"]


def test_channels_are_ranked_across_layers_of_one_kind_and_every_kind_loses_the_same_ratio() -> None:
    """Two layers are alike, and half of the second's channels matter little; those of the third, of another kind, less
    still."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip
    found = prunable(model, example=torch.zeros(1, 3, 16, 16), importance="l2", round_to=2)
    first, second, third = sorted(found.groups, key=lambda group: group.name)
    assert first.kind == second.kind != third.kind
    scores = torch.ones(32), torch.tensor([0.1, 1.9]).repeat(16), torch.full((32,), 0.01)
    for group, values in zip((first, second, third), scores, strict=True):
        object.__setattr__(group, "scores", values)
        object.__setattr__(group, "order", torch.argsort(values, stable=True))
    plan = plans(found, fraction=0.3, round_to=2, comparable=False)["one ratio"]
    lost = {group.name: units for group, units in plan}
    assert set(lost) == {second.name, third.name}
    assert lost[second.name] == pytest.approx(2 * lost[third.name], abs=2)
    assert set(second.channels(lost[second.name])) <= set(range(0, 32, 2))


def test_cuts_that_do_not_remove_what_was_asked_are_refused(plain: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans go by a model of shares; what they come to is counted."""
    from edgeopt.compress import prune as module

    found = prunable(plain, example=torch.zeros(1, 3, SIZE, SIZE), gradient_batches=batches())
    planned = plans(found, fraction=0.4, round_to=8, comparable=False)["one ratio"]
    others = {"one ratio": planned, "importance per MAC": planned[:1]}
    monkeypatch.setattr(module, "plans", lambda *_, **__: others)
    assert list(cuts(found, fraction=0.4, round_to=8, comparable=True)) == ["one ratio"]
    others["one ratio"] = others["importance per MAC"]
    with pytest.raises(ModelError, match=r"asked for 40\.0% of the MACs, got \d+\.\d%"):
        cuts(found, fraction=0.4, round_to=8, comparable=True)


def test_pruning_twice_adds_to_the_history() -> None:
    torch.manual_seed(0)
    created = create("resnet18", num_classes=5, pretrained=False, image_size=SIZE)
    example = torch.zeros(1, 3, SIZE, SIZE)
    once = prune(created.model, fraction=0.2, example=example, importance="l2")
    twice = prune(once.model, fraction=0.2, example=example, importance="l2")
    fresh = rebuild(created.architecture.pruned(once.history).pruned(twice.history))
    fresh.load_state_dict(twice.model.state_dict())
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(fresh(pictures), twice.model(pictures))


def test_a_pruned_and_quantized_model_comes_back_bit_equal(tmp_path: Path) -> None:
    """Weights, cuts and quantizers together, as every int8 variant of a run is stored."""
    from edgeopt.compress.quantize import quantize, quantizer_config
    from edgeopt.schemes import get_scheme

    torch.manual_seed(0)
    created = create("mobilenetv2_050", num_classes=5, pretrained=False, image_size=32)
    pruned = prune(created.model, fraction=0.3, example=torch.zeros(1, 3, 32, 32), importance="l2")
    int8 = quantize(pruned.model, [pictures for pictures, _ in batches(size=32)], scheme=get_scheme("u8a7w"))
    assert count_macs(int8, (3, 32, 32)) == pruned.macs_after
    assert count_parameters(int8) == pruned.parameters_after
    save(int8, created.architecture.pruned(pruned.history).quantized(quantizer_config(int8), "u8a7w"), tmp_path)
    loaded = load(tmp_path)
    pictures = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), int8(pictures))


def test_attention_keeps_its_heads_and_says_so() -> None:
    torch.manual_seed(0)
    model = create(
        "deit_tiny_patch16_224", num_classes=5, pretrained=False, arguments={"depth": 2}, image_size=32
    ).model
    example = torch.zeros(1, 3, 32, 32)
    result = prune(model, fraction=0.25, example=example, importance="l2")
    check(result, model, example, 0.25)
    assert result.widths["blocks.0.attn.qkv"] == (576, 576)
    assert result.untouched["blocks.0.attn.qkv"] == "part of attention blocks.0.attn"
    assert "coupled to" in result.untouched["patch_embed.proj"]
    assert result.widths["blocks.0.mlp.fc1"][1] < 768


# --- what cannot be done ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_must_be_one(plain: nn.Module, fraction: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        prune(plain, fraction=fraction, example=torch.zeros(1, 3, 32, 32), importance="l2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient_batches": None}, "needs gradient_batches"),
        ({"gradient_batches": []}, "got no gradient batches"),
        ({"importance": "l3"}, 'unknown importance "l3"'),
        ({"ignored": ["nope"]}, "no module is called nope"),
        ({"round_to": 0}, "round_to"),
        ({"max_layer_fraction": 1.0}, "max_layer_fraction"),
        ({"example": torch.zeros(3, 32, 32)}, "one picture"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant(plain: nn.Module, change: dict[str, object], message: str) -> None:
    settings = {"example": torch.zeros(1, 3, 32, 32), "gradient_batches": batches(1, size=32), **change}
    with pytest.raises(ConfigError, match=message):
        prune(plain, fraction=0.3, **settings)  # type: ignore[arg-type]


def test_what_cannot_be_reached_is_refused_with_what_can(plain: nn.Module) -> None:
    example = torch.zeros(1, 3, SIZE, SIZE)
    with pytest.raises(ModelError, match=r"95% of the MACs cannot be removed, at most \d\d%") as caught:
        prune(plain, fraction=0.95, example=example, importance="l2")
    most = float(str(caught.value.fix).split("at most ")[1].split(",")[0])
    check(prune(plain, fraction=most, example=example, importance="l2"), plain, example, most)
    with pytest.raises(ModelError, match="in steps of 32 channels") as caught:
        prune(plain, fraction=0.15, example=example, importance="l2", round_to=32)
    near = float(str(caught.value.fix).split("ask for ")[1].split(",")[0])
    check(prune(plain, fraction=near, example=example, importance="l2", round_to=32), plain, example, near)


class Broken(Plain):
    """Its grouped part gets pictures it cannot take."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.grouped(self.stem(x))


class Detached(Plain):
    """Autograd, and so the trace, ends inside."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).detach()


def test_a_model_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(ModelError, match=r"cannot be traced at grouped.0"):
        prune(Broken(), fraction=0.3, example=torch.zeros(1, 3, 32, 32), importance="l2")
    with pytest.raises(ModelError, match=r"cannot be traced through Detached: no layer"):
        prune(Detached(), fraction=0.3, example=torch.zeros(1, 3, 32, 32), importance="l2")


def _other(history: list[list[object]]) -> list[list[object]]:
    return [["absent.layer", True, [0]], *history]


def _beyond(history: list[list[object]]) -> list[list[object]]:
    return [[history[0][0], True, [10_000]]]


def _everything(history: list[list[object]]) -> list[list[object]]:
    return [["expand.0", True, list(range(96))]]


def _twice(history: list[list[object]]) -> list[list[object]]:
    return [["expand.0", True, [1, 1]]]


def _normalization(history: list[list[object]]) -> list[list[object]]:
    return [["classifier", True, list(range(5))]]


@pytest.mark.parametrize("spoil", [_other, _beyond, _everything, _twice, _normalization])
def test_a_history_of_another_model_is_refused(
    plain: nn.Module, spoil: Callable[[list[list[object]]], list[list[object]]]
) -> None:
    history = prune(plain, fraction=0.3, example=torch.zeros(1, 3, 32, 32), importance="l2").history
    with pytest.raises(ModelError, match="pruning history"):
        replay(Plain().eval(), spoil(history))


def _followed() -> nn.Module:
    import timm

    made: nn.Module = timm.create_model("test_efficientnet", num_classes=3)
    return made


def _shuffled() -> nn.Module:
    """ShuffleNetV2, two blocks a stage: half of the channels pass by, and both halves are shuffled."""
    from torchvision.models.shufflenetv2 import ShuffleNetV2

    return ShuffleNetV2([2, 2, 2], [24, 32, 64, 128, 128], num_classes=3)


def _maxvit() -> nn.Module:
    """Windows go into the batch: torch-pruning multiplies the channels at each, to tens of gigabytes."""
    import timm

    made: nn.Module = timm.create_model("test_maxvit", num_classes=3, img_size=64)
    return made


class _Focused(nn.Module):
    """Every fourth pixel is a picture of its own, as in CSPDarknet's focus: torch-pruning knows no channels of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(12, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.body = nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 64, 3, padding=1))
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
        x = torch.relu(self.norm(self.stem(torch.cat(parts, 1))))
        logits: torch.Tensor = self.head(torch.relu(self.body(x)).mean((2, 3)))
        return logits


def _cspnet() -> nn.Module:
    """Half of a stage's channels pass by: torch-pruning cuts channels that a layer does not have."""
    import timm

    made: nn.Module = timm.create_model("cspresnet50", num_classes=3)
    return made


def _rexnet() -> nn.Module:
    """A block's input is added to the first of its channels: torch-pruning shifts them without end."""
    import timm

    made: nn.Module = timm.create_model("rexnet_100", num_classes=3)
    return made


class HeadFirst(nn.Module):
    """Its classifier is the first layer it names."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 24)
        self.first, self.second = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))
        return logits


def test_the_classifier_is_the_layer_that_is_run_last_wherever_it_is_named() -> None:
    found = prune(HeadFirst().eval(), fraction=0.523, example=torch.zeros(1, 3, 32, 32), importance="l2")
    assert found.untouched["head"] == "classifier"
    assert found.model(torch.zeros(1, 3, 32, 32)).shape == (1, 24)


def test_what_steps_of_8_cannot_make_smaller_ones_can_as_the_message_says() -> None:
    model, example = HeadFirst().eval(), torch.zeros(1, 3, 32, 32)
    with pytest.raises(ModelError, match="in steps of 8 channels") as error:
        prune(model, fraction=0.45, example=example, importance="l2")
    assert "--set round_to=4" in str(error.value)
    assert validate(CompressConfig, {"prune": 0.45, "round_to": 4}, where="compress options").round_to == 4
    finer = prune(model, fraction=0.45, example=example, importance="l2", round_to=4)
    assert finer.removed == pytest.approx(0.45, abs=0.02)


def _gcvit() -> nn.Module:
    """Queries come from the whole picture, keys and values from windows: torch-pruning divides by a split of none."""
    import timm

    made: nn.Module = timm.create_model("gcvit_xxtiny", num_classes=3, img_size=64)
    return made


@pytest.mark.parametrize(
    "make",
    [
        _followed,
        _shuffled,
        _maxvit,
        _Focused,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (_cspnet, _rexnet, _gcvit)),
    ],
)
def test_what_is_cut_is_what_nobody_reads_any_more(make: Callable[[], nn.Module]) -> None:
    """The pruned network answers as the whole one whose later weights for the cut channels are zero.

    Where the way of channels cannot be followed, layers keep their width with that reason, and the others are cut.
    """
    torch.manual_seed(0)
    model, example = make().eval(), torch.zeros(1, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.bias.data.normal_(0, 0.1)
    normalized = ("stem",) if make is _gcvit else ()  # by a LayerNorm, to which a channel that is zero is not gone
    found = prune(model, fraction=0.15, example=example, importance="l2", round_to=2, ignored=normalized)
    assert found.removed == pytest.approx(0.15, abs=0.02)
    lost = [name for name, reason in found.untouched.items() if "cannot be followed" in reason]
    assert bool(lost) == (make not in (_followed, _maxvit, _gcvit, _Focused)), (
        "those of MaxViT and GCViT are in attention, which stays whole anyway"
    )
    cut = {name for name, _, _ in found.history}
    assert cut.isdisjoint(lost)
    masked = copy.deepcopy(model)
    graph, modules = trace(masked, example), dict(masked.named_modules())
    with bounded(graph), torch.no_grad():
        for name, _, channels in found.history:
            pruner = graph.get_pruner_of_module(modules[name])
            for dep, indices in graph.get_pruning_group(modules[name], pruner.prune_out_channels, channels):
                reader = dep.target.module
                if graph.is_in_channel_pruning_fn(dep.handler) and is_layer(reader) and reader.weight.shape[1] > 1:
                    reader.weight[:, indices] = 0
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found.model(pictures), masked(pictures), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(found.model(pictures), model(pictures), atol=1e-3)


class _Split(nn.Module):
    """Tokens through two MLPs whose hidden features are split along the last axis: halves that gate, and that do not.

    ``sizes`` are those of the second split where its forward states them, so that nothing can be cut from it.
    """

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed = nn.Conv2d(3, 24, 8, stride=8)
        self.fc1, self.fc2 = nn.Linear(24, 64), nn.Linear(32, 24)
        self.mix1, self.mix2, self.mix3 = nn.Linear(24, 32), nn.Linear(16, 24), nn.Linear(16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(pictures).flatten(2).transpose(1, 2)
        value, gate = self.fc1(tokens).chunk(2, dim=-1)
        tokens = tokens + self.fc2(nn.functional.silu(gate) * value)
        hidden = self.mix1(tokens)
        first, second = hidden.split(list(self.sizes), -1) if self.sizes else hidden.chunk(2, dim=-1)
        return self.head((tokens + self.mix3(second) + self.mix2(first)).mean(1))


@pytest.mark.parametrize("sizes", [(), (16, 16)], ids=["chunk", "sizes"])
def test_halves_of_a_split_lose_the_same_channels_or_none(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, example = _Split(*sizes).eval(), torch.zeros(1, 3, 64, 64)
    found = prunable(model, example=example, importance="l2", round_to=4, ignored=["embed", "fc2"])
    halves = {group.name: group for group in found.groups}
    assert set(halves) == ({"fc1"} if sizes else {"fc1", "mix1"})
    assert ("cannot be followed" in found.reasons.get("mix1", "")) == bool(sizes)
    made = found.cut([(group, 4) for group in halves.values()])
    masked = copy.deepcopy(model)
    for name, _, lost in made.history:
        layer, half = masked.get_submodule(name), halves[name].root.out_features // 2  # type: ignore[operator]
        assert sorted(lost) == sorted([one % half for one in lost[:4]] + [one % half + half for one in lost[:4]])
        with torch.no_grad():
            layer.weight[lost] = 0  # type: ignore[index]
            layer.bias[lost] = 0  # type: ignore[index]
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(made.model(pictures), masked(pictures), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(made.model(pictures), model(pictures), atol=1e-3)


def test_what_cannot_be_proven_is_left_whole_and_the_rest_is_found_by_halves() -> None:
    """The cut of a layer that another one reads in other places than the group says; zeros elsewhere tell it."""
    torch.manual_seed(0)
    model, example = _Split().eval(), torch.zeros(1, 3, 64, 64)
    kept = ["embed", "fc2"]
    groups = {
        one.name: one for one in prunable(model, example=example, importance="l2", round_to=4, ignored=kept).groups
    }
    graph = trace(model, example)
    there = dict(model.named_modules())
    own = [replace(one, root=there[name]) for name, one in groups.items()]
    with bounded(graph):
        assert [one.name for one in proven(graph, model, example, own)] == [one.name for one in own]
        uneven = [replace(one, repeats=1) if one.name == "mix1" else one for one in own]  # the halves part unevenly
        assert [one.name for one in proven(graph, model, example, uneven)] == ["fc1"]
        assert proven(graph, model, example, []) == []
