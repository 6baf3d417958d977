"""The trainable quantizers: what they give, what gradients they pass on, what they keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgeopt.compress.quantizers import (
    SMALLEST_SCALE,
    Quantizer,
    activation_quantizer,
    quantizer_from_config,
    quantizer_to_config,
    weight_quantizer,
)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 6, 5, 5) * 2


@pytest.mark.parametrize(
    ("signed", "symmetric"), [(False, False), (True, True)], ids=["uint8 asymmetric", "int8 symmetric"]
)
def test_activations_equal_torchs_own_fake_quantization(x: Tensor, signed: bool, symmetric: bool) -> None:
    quantizer = activation_quantizer(-3.0, 4.0, signed=signed, symmetric=symmetric)
    low, high = (-128, 127) if signed else (0, 255)
    expected = torch.fake_quantize_per_tensor_affine(x, quantizer.scale.item(), quantizer.zero_point, low, high)
    torch.testing.assert_close(quantizer(x), expected, rtol=0, atol=1e-6)
    assert quantizer(x).unique().numel() > 50
    assert quantizer(torch.zeros(1)).item() == 0.0, "zero must be exact: padding is made of it"


@pytest.mark.parametrize(
    ("low", "high", "zero_point", "scale"),
    [
        (-3.0, 3.6, 128, 3.6 / 127),  # 9 % wider steps
        (-3.2, 2.5, 128, 3.2 / 128),
        (-3.0, 6.0, 85, 9.0 / 255),  # they would be a third wider
        (-0.375, 4.0, 22, 4.375 / 255),  # hard-swish
        (0.0, 4.0, 0, 4.0 / 255),
        (0.0, 0.0, 0, SMALLEST_SCALE),
    ],
)
def test_ranges_that_reach_about_as_far_to_both_sides_are_centred(
    low: float, high: float, zero_point: int, scale: float
) -> None:
    quantizer = activation_quantizer(low, high, signed=False, symmetric=False, centred=True)
    assert quantizer.zero_point == zero_point
    assert quantizer.scale.item() == pytest.approx(scale)
    ends = quantizer(torch.tensor([low, high]))
    torch.testing.assert_close(ends, torch.tensor([low, high]), rtol=0, atol=0.51 * quantizer.scale.item())


@pytest.mark.parametrize("largest", [127, 63])
def test_weights_equal_torchs_own_per_channel_fake_quantization(largest: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 3, 3) * torch.logspace(-3, 1, 8).reshape(-1, 1, 1, 1)
    quantizer = weight_quantizer(weight.abs().amax((1, 2, 3), keepdim=True), largest=largest)
    scale = quantizer.scale.flatten()
    expected = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros(8, dtype=torch.int32), 0, -largest, largest
    )
    torch.testing.assert_close(quantizer(weight), expected, rtol=1e-5, atol=0)
    codes = (quantizer(weight) / quantizer.scale).round()
    assert codes.abs().amax((1, 2, 3)).tolist() == [largest] * 8, "every channel uses its whole range"


def _reference(x: Tensor, log_scale: Tensor, low: int, high: int) -> Tensor:
    """Straight-through fake quantization left to autograd: rounding has gradient 1, clipping its own."""
    scale = log_scale.exp()
    ratio = x / scale
    clipped = ratio.clamp(low, high)
    return (clipped + (clipped.round() - clipped).detach()) * scale


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_equal_those_of_the_formula(x: Tensor, per_channel: bool, layout: torch.memory_format) -> None:
    scale = torch.full((2, 1, 1, 1) if per_channel else (), 0.02)  # narrow: many values are outside the range
    quantizer = Quantizer(scale, low=-64, high=63)
    upstream = torch.randn_like(x)
    x = x.to(memory_format=layout).requires_grad_()
    quantizer(x).backward(upstream)
    assert x.grad is not None
    assert quantizer.log_scale.grad is not None
    other = x.detach().clone().requires_grad_()
    log_scale = quantizer.log_scale.detach().clone().requires_grad_()
    _reference(other, log_scale, -64, 63).backward(upstream)
    assert other.grad is not None
    at_the_edge = ((other.abs() / 0.02) - 63.5).abs() <= 1.0  # the formula clips before it rounds
    torch.testing.assert_close(x.grad[~at_the_edge], other.grad[~at_the_edge])
    assert (x.grad == 0).any()
    assert (x.grad != 0).any()
    assert log_scale.grad is not None
    torch.testing.assert_close(quantizer.log_scale.grad, log_scale.grad, rtol=0.02, atol=0.05)


def test_descending_the_scale_gradient_lowers_the_rounding_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(4096)
    quantizer = activation_quantizer(-40.0, 40.0, signed=True, symmetric=True)  # ten times too wide
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    errors = []
    for _ in range(80):
        error = (quantizer(x) - x).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 20
    assert 0.02 < quantizer.scale.item() < 0.06, "about the range of 4096 normal numbers over 127"


def test_output_may_be_changed_in_place_as_residual_networks_do(x: Tensor) -> None:
    quantizer = activation_quantizer(-3.0, 3.0, signed=False, symmetric=False)
    x.requires_grad_()
    y = quantizer(x)
    y += x
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.max() == 2


def test_scale_never_exceeds_the_end_of_a_clipped_activation() -> None:
    quantizer = activation_quantizer(0.0, 6.0, signed=False, symmetric=False, upper_end=6.0)
    with torch.no_grad():
        quantizer.log_scale += 1
    assert quantizer.scale.item() == pytest.approx(6 / 255)
    assert quantizer(torch.tensor([7.0])).item() == pytest.approx(6)


def test_empty_ranges_still_give_a_usable_scale() -> None:
    for quantizer in (
        activation_quantizer(0.0, 0.0, signed=False, symmetric=False),
        activation_quantizer(0.0, 0.0, signed=True, symmetric=True),
        weight_quantizer(torch.zeros(3, 1, 1, 1), largest=127),
    ):
        assert (quantizer.scale > 0).all()
        assert quantizer(torch.zeros(3, 1, 1, 1)).abs().max() == 0


def test_memory_format_and_gradient_free_runs_are_kept(x: Tensor) -> None:
    quantizer = activation_quantizer(-3.0, 3.0, signed=False, symmetric=False)
    last = x.to(memory_format=torch.channels_last)
    assert quantizer(last).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(quantizer(last), quantizer(x))
    with torch.no_grad():
        assert not quantizer(x).requires_grad
    assert quantizer(x.bfloat16()).dtype == torch.float32


def test_config_describes_all_but_the_scales() -> None:
    quantizer = activation_quantizer(-1.0, 5.0, signed=False, symmetric=False, upper_end=6.0)
    again = quantizer_from_config(quantizer_to_config(quantizer))
    with torch.no_grad():
        quantizer.log_scale += 1  # beyond the activation's end, as training may
    again.load_state_dict(quantizer.state_dict())
    values = torch.linspace(-2, 7, 200)
    assert torch.equal(again(values), quantizer(values))
