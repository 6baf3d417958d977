"""How many pictures a second any training loop could reach here: the bare step, with nothing around it.

    python benchmarks/training_limit.py [--rounds 10]                             # writes training_limit.json

A step is forward, cross-entropy, backward and plain SGD on a batch that lies in memory, at the size and batch of
training_speed.py, in float32 and channels_last with freed memory kept: no picture is decoded, no weight averaged. What
a loop can gain over another is bounded by the bare step over that other. Beside it stands what PyTorch's matrix
multiplication reaches (2048 x 2048, float32), as a measure of the machine's arithmetic; a step counts three times the
multiply-accumulates of a forward pass, two operations each. Medians over rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training_speed import BATCH, SIDE

from edgeopt.models import create
from edgeopt.models.macs import count_macs
from edgeopt.train.allocator import keep_memory

OUT = Path(__file__).with_suffix(".json")
SPEED = Path(__file__).with_name("training_speed.json")
MODELS = ("tf_efficientnet_lite0", "resnet18")
STEPS, MULTIPLICATIONS, ORDER = 4, 8, 2048


class Step:
    """One model's bare step."""

    def __init__(self, name: str) -> None:
        self.model = create(name, num_classes=9, pretrained=False, image_size=SIDE).model
        self.macs = count_macs(self.model, (3, SIDE, SIDE))
        self.model = self.model.to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.pictures = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 9, (BATCH,))

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.pictures), self.labels).backward()
        self.optimizer.step()

    def pictures_a_second(self) -> float:
        """Of one window, after a step that is not counted."""
        self()
        begin = time.perf_counter()
        for _ in range(STEPS):
            self()
        return STEPS * BATCH / (time.perf_counter() - begin)


def multiplication_gflops(left: torch.Tensor, right: torch.Tensor) -> float:
    """Of one window, after a product that is not counted."""
    left @ right
    begin = time.perf_counter()
    for _ in range(MULTIPLICATIONS):
        left @ right
    return MULTIPLICATIONS * 2 * ORDER**3 / (time.perf_counter() - begin) / 1e9


def figures(step: Step, rates: list[float], arithmetic: float, measured: dict[str, Any]) -> dict[str, Any]:
    """What one model's bare step reaches, and its ratio to what the loops of training_speed.py did."""
    rate = statistics.median(rates)
    gflops = rate * step.macs * 3 * 2 / 1e9
    loops = {
        name: statistics.median(row["images_per_second"] for row in rows)
        for name, rows in measured.get("rounds", {}).items()
    }
    return {
        "macs": step.macs,
        "images_per_second": round(rate, 2),
        "rounds": [round(one, 2) for one in rates],
        "gflops": round(gflops, 1),
        "share_of_multiplication": round(gflops / arithmetic, 3),
        "over": {name: round(rate / value, 3) for name, value in loops.items()},
    }


def main() -> None:
    """Measure all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    asked = parser.parse_args()
    keep_memory()
    steps = {name: Step(name) for name in MODELS}
    rates: dict[str, list[float]] = {name: [] for name in MODELS}
    left, right = torch.randn(2, ORDER, ORDER).unbind()
    products = []
    for number in range(asked.rounds):
        products.append(multiplication_gflops(left, right))
        for name, step in steps.items():
            rates[name].append(step.pictures_a_second())
        print(f"round {number + 1}: {products[-1]:.0f} GFLOP/s", {name: round(rates[name][-1], 1) for name in MODELS})
    arithmetic = statistics.median(products)
    measured = json.loads(SPEED.read_text())["models"] if SPEED.is_file() else {}
    found = {
        "schema": 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "side": SIDE,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "multiplication_gflops": round(arithmetic, 1),
        "models": {name: figures(steps[name], rates[name], arithmetic, measured.get(name, {})) for name in MODELS},
    }
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
