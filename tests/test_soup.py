"""Soups: the mean of weights, BatchNorm gathered anew, and only what does not harm goes in."""

from __future__ import annotations

import copy

import torch
from tiny_torch import TinyNet, calibration, tiny_net
from torch import Tensor, nn

from edgeopt.train.soup import average, greedy_soup, mix, rank


def near(net: nn.Module, seed: int, size: float) -> nn.Module:
    """A copy with weights disturbed."""
    other, generator = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return other


def pictures() -> Tensor:
    return torch.cat(calibration())


def judge(truth: Tensor):  # type: ignore[no-untyped-def]
    def evaluate(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            answers = model(pictures())
        top1 = float((answers.argmax(dim=1) == truth).float().mean())
        return {"top1": top1, "recall": top1, "loss": float(nn.functional.cross_entropy(answers, truth))}

    return evaluate


def test_a_soup_of_two_is_the_mean_of_their_weights() -> None:
    one, other = tiny_net(), near(tiny_net(), 1, 0.1)
    soup = TinyNet()
    mix(soup, [one.state_dict(), other.state_dict()], calibration)
    for name, parameter in soup.named_parameters():
        a, b = one.get_parameter(name), other.get_parameter(name)
        assert torch.allclose(parameter, (a + b) / 2, atol=1e-7), name
    assert not any(module.training for module in soup.modules())
    assert average([one.state_dict()])["stem_norm.num_batches_tracked"] == one.stem_norm.num_batches_tracked


def test_batchnorm_is_of_the_mixed_networks_own_activations() -> None:
    one, other = tiny_net(), near(tiny_net(), 1, 0.3)
    other.stem_norm.running_mean += 5  # type: ignore[operator]
    soup = TinyNet()
    mix(soup, [one.state_dict(), other.state_dict()], calibration)
    with torch.no_grad():
        entering = [soup.stem(nn.functional.pad(batch, (0, 1, 0, 1))) for batch in calibration()]
    means = torch.stack([part.mean(dim=(0, 2, 3)) for part in entering]).mean(dim=0)
    variances = torch.stack([part.var(dim=(0, 2, 3)) for part in entering]).mean(dim=0)
    assert torch.allclose(soup.stem_norm.running_mean, means, atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(soup.stem_norm.running_var, variances, rtol=1e-4)  # type: ignore[arg-type]
    assert soup.stem_norm.momentum == TinyNet().stem_norm.momentum


def test_statistics_that_all_agree_on_are_left_alone() -> None:
    one = tiny_net()
    other = near(one, 1, 0.1)  # the same statistics: as with a frozen BatchNorm
    soup = TinyNet()
    mix(soup, [one.state_dict(), other.state_dict()], calibration)
    assert torch.equal(soup.stem_norm.running_mean, one.stem_norm.running_mean)  # type: ignore[arg-type]


def sure_net() -> TinyNet:
    """A net whose answers to the pictures are not all the same class."""
    net = tiny_net()
    with torch.no_grad():
        net.head.bias -= net(pictures()).mean(dim=0)
        assert len(net(pictures()).argmax(dim=1).unique()) > 2
    return net


def contrary(net: TinyNet) -> TinyNet:
    """It says the opposite, and louder."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.weight *= -5
        other.head.bias *= -5
    return other


def test_a_member_that_does_harm_is_not_added_and_what_does_not_is() -> None:
    net = sure_net()
    with torch.no_grad():
        truth = net(pictures()).argmax(dim=1)
    members = {"first": net, "near": near(net, 1, 1e-6), "bad": contrary(net), "nearer": near(net, 2, 1e-7)}
    states = {name: copy.deepcopy(one.state_dict()) for name, one in members.items()}
    model, evaluate = TinyNet(), judge(truth)
    ranked = rank(model, states, evaluate)
    assert ranked[-1].name == "bad"
    assert ranked[-1].figures["top1"] < ranked[0].figures["top1"] == 1.0
    soup = greedy_soup(model, states, ranked, evaluate, batches=calibration)
    assert set(soup.ingredients) == {"first", "near", "nearer"}
    assert [one.name for one in soup.tried] == [one.name for one in ranked]
    assert not soup.tried[-1].kept
    assert soup.tried[-1].score < soup.tried[0].score
    expected = average([states[name] for name in soup.ingredients])
    assert torch.allclose(model.head.weight, expected["head.weight"])
    assert evaluate(model)["top1"] == 1.0


def test_a_soup_of_one_is_that_one_to_the_bit() -> None:
    net = sure_net()
    with torch.no_grad():
        truth = net(pictures()).argmax(dim=1)
    states = {"bad": contrary(net).state_dict(), "first": copy.deepcopy(net.state_dict())}
    model = TinyNet()
    soup = greedy_soup(model, states, rank(model, states, judge(truth)), judge(truth), batches=calibration)
    assert soup.ingredients == ("first",)
    assert all(torch.equal(value, states["first"][name]) for name, value in model.state_dict().items())
