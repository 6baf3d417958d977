"""A step of quantization-aware training against the float step; writes qat_step.json beside it.

    python benchmarks/compression/qat_step.py [--rounds 10] [--threads 1] [--scheme u8a7w]

Steps are forward, backward and optimizer of tf_efficientnet_lite0 at 96 pixels, batch 32, fp32, channels_last; no
data, no teacher. ``qat`` is what edgeopt trains, ``before`` the same with the backward pass that the quantizers had
first. All have the same random weights and are stepped in turn, round after round. ``ratio`` is the median of the
rounds' ratios to ``float``, its interval a bootstrap over rounds, of the process's CPU time: on a machine that others
use too, wall time says how much they used it (it is in ``*_wall_ms``). ``profile`` has, for each, the operators that
take longest by themselves, in milliseconds a step, from torch's profiler in steps of their own.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from edgeopt.compress.quantize import named_quantizers, quantize, quantizer_parameters
from edgeopt.compress.quantizers import Quantizer, _dot, nearest_codes
from edgeopt.environment import cpu
from edgeopt.models import create
from edgeopt.schemes import get_scheme
from edgeopt.train.allocator import keep_memory
from edgeopt.train.config import LoopConfig
from edgeopt.train.freezing import freeze_batchnorm_statistics
from edgeopt.train.optimizer import make_optimizer

OUT = Path(__file__).with_suffix(".json")
MODEL, SIDE, BATCH, CLASSES = "tf_efficientnet_lite0", 96, 32, 9
WARM_UP, PROFILED, SHOWN = 3, 3, 14


def stepper(model: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], None]:
    """One step of the training loop's optimizer on ``model``, which is changed in place."""
    model = model.to(memory_format=torch.channels_last).train()
    freeze_batchnorm_statistics(model)  # in both, as it is while scales are learned
    groups = [{"params": quantizer_parameters(model), "lr": 1e-6}] if named_quantizers(model) else []
    config = LoopConfig(epochs=1, lr=1e-6, layer_decay=1.0)
    optimizer = make_optimizer(model, config, extra_groups=groups)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def taken(step: Callable[[], None]) -> tuple[float, float]:
    """Seconds of CPU time and of wall time."""
    cpu_start, start = time.process_time(), time.perf_counter()
    step()
    return time.process_time() - cpu_start, time.perf_counter() - start


class _Before(torch.autograd.Function):
    """edgeopt's fake quantization as it was: comparisons for the mask of weights, one pass more for activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_scale: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.low, ctx.high = low, high
        return nearest_codes(x, scale, low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale = ctx.saved_tensors
        below, above = (ctx.low - 0.5) * scale, (ctx.high + 0.5) * scale
        quantized = nearest_codes(x, scale, ctx.low, ctx.high).mul_(scale)
        if scale.dim() == 0:
            x_gradient = torch.ops.aten.hardtanh_backward(gradient, x, below.item(), above.item())
            return x_gradient, _dot(gradient, quantized) - _dot(x_gradient, x), None, None, None
        x_gradient = torch.where((x > below) & (x < above), gradient, 0.0)
        rest = tuple(range(1, x.dim()))
        return x_gradient, quantized.mul_(gradient).sub_(x_gradient * x).sum(rest, keepdim=True), None, None, None


class QuantizerBefore(Quantizer):
    """A quantizer with that backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.low - self.zero_point, self.high - self.zero_point
        result: Tensor = _Before.apply(x.float(), self.log_scale, self.scale, low, high)
        return result


def slowest(step: Callable[[], None]) -> list[dict[str, Any]]:
    """The operators that take longest by themselves, a step."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(PROFILED):
            step()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)[:SHOWN]
    return [
        {
            "operator": row.key,
            "ms": round(row.self_cpu_time_total / 1000 / PROFILED, 2),
            "calls": round(row.count / PROFILED),
        }
        for row in rows
    ]


def summary(found: npt.NDArray[np.float64], base: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Of (rounds, 2) seconds of CPU and wall time: medians in milliseconds, and the ratio of CPU time to ``base``'s."""
    ratios = found[:, 0] / base[:, 0]
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    return {
        "cpu_ms": round(1000 * float(np.median(found[:, 0])), 1),
        "wall_ms": round(1000 * float(np.median(found[:, 1])), 1),
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_ci": [round(float(one), 3) for one in np.quantile(np.median(drawn, axis=1), (0.025, 0.975))],
        "cpu_samples_ms": [round(1000 * float(one), 1) for one in found[:, 0]],
    }


def measure(scheme: str, rounds: int, threads: int) -> dict[str, Any]:
    keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    targets = torch.arange(BATCH) % CLASSES
    model = create(MODEL, num_classes=CLASSES, pretrained=False, image_size=SIDE).model
    quantized = quantize(model, [images[:16].contiguous(), images[16:].contiguous()], scheme=get_scheme(scheme))
    before = copy.deepcopy(quantized)
    for _, quantizer in named_quantizers(before):
        quantizer.__class__ = QuantizerBefore
    models = {"float": model, "before": before, "qat": quantized}
    steps = {name: stepper(one, images, targets) for name, one in models.items()}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            samples[name].append(taken(steps[name]))
    rows = {name: summary(np.array(found), np.array(samples["float"])) for name, found in samples.items()}
    return {
        "schema": 1,
        "model": MODEL,
        "side": SIDE,
        "batch": BATCH,
        "scheme": scheme,
        "rounds": rounds,
        "threads": threads,
        "steps": rows,
        "quantizers": len(named_quantizers(quantized)),
        "profile": {name: slowest(step) for name, step in steps.items()},
        "torch": torch.__version__,
        "cpu": cpu()["name"],
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scheme", default="u8a7w")
    options = parser.parse_args()
    found = measure(options.scheme, options.rounds, options.threads)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    for name, row in found["steps"].items():
        print(name, {key: row[key] for key in ("cpu_ms", "wall_ms", "ratio", "ratio_ci")})


if __name__ == "__main__":
    main()
