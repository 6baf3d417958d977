"""A step of quantization-aware training against the float step; writes qat_step.json beside it.

    python benchmarks/compression/qat_step.py --label after [--rounds 12] [--scheme u8a7w]

Steps are forward, backward and optimizer of tf_efficientnet_lite0 at 96 pixels, batch 32, fp32, channels_last; no
data, no teacher. Both models have the same weights (random), and are stepped in turn, round after round, with as many
threads as torch takes. ``ratio`` is the median of the rounds' ratios, its interval a bootstrap over rounds. ``profile``
has, for each, the operators that take longest by themselves, in milliseconds a step, from torch's profiler in steps of
their own. The file keeps one entry a label: what was measured before a change stays beside what was measured after it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from edgeopt.compress.quantize import named_quantizers, quantize, quantizer_parameters
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


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


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


def measure(scheme: str, rounds: int) -> dict[str, Any]:
    keep_memory()
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    targets = torch.arange(BATCH) % CLASSES
    model = create(MODEL, num_classes=CLASSES, pretrained=False, image_size=SIDE).model
    quantized = quantize(model, [images[:16].contiguous(), images[16:].contiguous()], scheme=get_scheme(scheme))
    steps = {"float": stepper(model, images, targets), "qat": stepper(quantized, images, targets)}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            taken[name].append(seconds(steps[name]))
    ratios = np.array(taken["qat"]) / np.array(taken["float"])
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    return {
        "scheme": scheme,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        **{f"{name}_ms": round(1000 * statistics.median(found), 1) for name, found in taken.items()},
        **{f"{name}_samples_ms": [round(1000 * one, 1) for one in found] for name, found in taken.items()},
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_ci": [round(float(one), 3) for one in np.quantile(np.median(drawn, axis=1), (0.025, 0.975))],
        "quantizers": len(named_quantizers(quantized)),
        "profile": {name: slowest(step) for name, step in steps.items()},
        "torch": torch.__version__,
        "cpu": cpu()["name"],
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", required=True, help="What is measured, as before or after.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--scheme", default="u8a7w")
    options = parser.parse_args()
    found = (
        json.loads(OUT.read_text()) if OUT.is_file() else {"schema": 1, "model": MODEL, "side": SIDE, "batch": BATCH}
    )
    found[options.label] = measure(options.scheme, options.rounds)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    shown = found[options.label]
    print({key: shown[key] for key in ("float_ms", "qat_ms", "ratio", "ratio_ci")})


if __name__ == "__main__":
    main()
