"""The trainable quantizers put where NNCF placed its own: they need no compiler and cost a few vectorized passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Below this a float32 range is noise (a channel that is always zero); a smaller scale would overflow int32 biases.
SMALLEST_SCALE = 1e-8
# Sums and linear layers give ranges that need 1.2 at most (lite0, trained); swish and its like, 1.8.
_WIDER = 1.25


class Quantizer(nn.Module):
    """Rounds float32 tensors to ``scale * (q - zero_point)`` with integers ``low <= q <= high`` and learns the scale.

    ``log_scale`` (float32, natural logarithm) is a scalar for activations and ``[channels, 1, ...]`` for weights. The
    logarithm makes a step of an Adam-like optimizer a relative change of the scale, and keeps the scale positive
    (Jain et al. 2020, "Trained Quantization Thresholds", https://arxiv.org/abs/1903.08066). ``zero_point`` is fixed.
    ``max_scale`` bounds the scale after an activation with a known upper end: a range beyond that end would waste codes
    and keep the runtimes from absorbing the activation into the quantizer.
    """

    def __init__(
        self, scale: Tensor, *, low: int, high: int, zero_point: int = 0, max_scale: float | None = None
    ) -> None:
        super().__init__()
        self.low = low
        self.high = high
        self.zero_point = zero_point
        self.max_scale = max_scale
        self.log_scale = nn.Parameter(scale.detach().float().clamp(min=SMALLEST_SCALE).log())

    @property
    def per_channel(self) -> bool:
        """True for weights: one scale per output channel."""
        return self.log_scale.dim() > 0

    @property
    def scale(self) -> Tensor:
        """The scale in use, float32, detached, shaped like ``log_scale``."""
        scale = self.log_scale.detach().float().exp()
        return scale if self.max_scale is None else scale.clamp(max=self.max_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Float tensor of any layout in, float32 tensor of the same layout on the quantizer's grid out."""
        # float32 also under autocast: in bfloat16 neighbouring codes would collapse.
        low, high = self.low - self.zero_point, self.high - self.zero_point
        result: Tensor = _FakeQuantize.apply(x.float(), self.log_scale, self.scale, low, high)
        return result

    def extra_repr(self) -> str:
        shape = tuple(self.log_scale.shape) or "per tensor"
        return f"[{self.low}, {self.high}], zero_point={self.zero_point}, scale {shape}"


def nearest_codes(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """``clip(round(x / scale), low, high)``: ties to even and a true division, as ONNX QuantizeLinear does."""
    return torch.div(x, scale).round_().clamp_(low, high)


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with a straight-through gradient and a learned scale.

    With x^ = s * clip(round(x / s), l, h) and m = 1 inside the range, else 0:
    dx^/dx = m (Bengio et al. 2013) and dx^/ds = (x^ - m x) / s (Esser et al. 2020, "Learned Step Size Quantization",
    https://arxiv.org/abs/1902.08153, eq. 3), hence dx^/d ln s = x^ - m x, so that
    dL/d ln s = <g, x^> - <g m, x> = s (<g, q> - <g m, x / s>) with the codes q: two dot products, the second reusing
    the gradient of x.
    LSQ's factor 1/sqrt(n h) is left out: Adam's steps do not depend on it.
    torch's own fake_quantize kernels are not vectorized on CPU (6x slower than this chain of in-place passes).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_scale: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        # x^ is not saved: models add to it in place (`x += shortcut`); making it again costs one pass.
        ctx.save_for_backward(x, scale)
        ctx.low, ctx.high = low, high
        return nearest_codes(x, scale, low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (gradient,) = gradients
        x, scale = ctx.saved_tensors
        ratio = torch.div(x, scale)
        # where(low - 0.5 < ratio < high + 0.5, gradient, 0) in one vectorized pass, 8 times as fast on a CPU.
        x_gradient = torch.ops.aten.hardtanh_backward(gradient, ratio, ctx.low - 0.5, ctx.high + 0.5)
        if not ctx.needs_input_grad[1]:
            return x_gradient, None, None, None, None
        if scale.dim() == 0:
            passed = _dot(x_gradient, ratio)
            codes = ratio.round_().clamp_(ctx.low, ctx.high)
            scale_gradient = (_dot(gradient, codes) - passed) * scale
        else:
            rest = tuple(range(1, x.dim()))
            passed = (x_gradient * ratio).sum(rest, keepdim=True)
            codes = ratio.round_().clamp_(ctx.low, ctx.high)
            scale_gradient = (codes.mul_(gradient).sum(rest, keepdim=True) - passed) * scale
        return x_gradient, scale_gradient, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a * b over all elements, without a temporary when both fill the same memory in the same order."""
    if a.stride() == b.stride() and a.numel() == b.numel():
        for layout in (torch.contiguous_format, torch.channels_last):
            if a.is_contiguous(memory_format=layout) if layout is torch.contiguous_format or a.dim() == 4 else False:
                return torch.dot(a.as_strided((a.numel(),), (1,)), b.as_strided((b.numel(),), (1,)))
    return (a * b).sum()


def activation_quantizer(
    low_value: float,
    high_value: float,
    *,
    signed: bool,
    symmetric: bool,
    centred: bool = False,
    upper_end: float | None = None,
) -> Quantizer:
    """A per-tensor quantizer covering [low_value, high_value] (float units), which always includes zero.

    ``centred`` gives zero the middle code, 128, where that makes the steps at most ``_WIDER`` times as wide.
    """
    low_value, high_value = min(low_value, 0.0), max(high_value, 0.0)
    low, high = (-128, 127) if signed else (0, 255)
    step = (high_value - low_value) / (high - low)
    centred_step = max(low_value / -128, high_value / 127)
    if symmetric:
        scale = max(-low_value, high_value) / high
        zero_point = 0
    elif centred and low_value < 0 and centred_step <= _WIDER * step:
        scale, zero_point = centred_step, low + 128
    else:
        scale = max(step, SMALLEST_SCALE)
        zero_point = min(max(low + round(-low_value / scale), low), high)
    max_scale = None if upper_end is None else upper_end / (high - zero_point)
    return Quantizer(torch.tensor(scale), low=low, high=high, zero_point=zero_point, max_scale=max_scale)


def weight_quantizer(largest_value: Tensor, *, largest: int) -> Quantizer:
    """A symmetric quantizer whose largest code is ``largest_value``, of shape [channels, 1, ...], in float units."""
    return Quantizer(largest_value / largest, low=-largest, high=largest)


def quantizer_from_config(config: dict[str, Any]) -> Quantizer:
    """The quantizer that ``quantizer_to_config`` described, its scales still 1 (the tensors come with the state)."""
    return Quantizer(
        torch.ones(config["shape"]),
        low=config["low"],
        high=config["high"],
        zero_point=config["zero_point"],
        max_scale=config["max_scale"],
    )


def quantizer_to_config(quantizer: Quantizer) -> dict[str, Any]:
    """JSON-able description of everything but the scales."""
    return {
        "shape": list(quantizer.log_scale.shape),
        "low": quantizer.low,
        "high": quantizer.high,
        "zero_point": quantizer.zero_point,
        "max_scale": quantizer.max_scale,
    }
