"""How many pictures a second any training loop could reach here: the bare step, with nothing around it.

    python benchmarks/training_limit.py [--rounds 10]                             # writes training_limit.json

A step is forward, cross-entropy, backward and plain SGD on a batch that lies in memory, at the size and batch of
training_speed.py, in channels_last with freed memory kept, in float32 and where the CPU has it in bfloat16 (a model's
figures are those of the faster): no picture is decoded, no weight averaged. What a loop can gain over another is
bounded by the bare step over that other. Beside it stands what PyTorch's matrix multiplication reaches (2048 x 2048),
as a measure of the machine's arithmetic; a step counts three times the multiply-accumulates of a forward pass, two
operations each. Medians over rounds in which all take turns.
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

from edgeopt.environment import has_bf16
from edgeopt.models import create
from edgeopt.models.macs import count_macs
from edgeopt.train.allocator import keep_memory

OUT = Path(__file__).with_suffix(".json")
SPEED = Path(__file__).with_name("training_speed.json")
MODELS = ("tf_efficientnet_lite0", "resnet18")
PRECISIONS = {"fp32": torch.float32, **({"bf16": torch.bfloat16} if has_bf16() else {})}
STEPS, MULTIPLICATIONS, ORDER = 4, 8, 2048


class Step:
    """One model's bare step in one precision."""

    def __init__(self, name: str, precision: str) -> None:
        self.precision = precision
        self.model = create(name, num_classes=9, pretrained=False, image_size=SIDE).model
        self.macs = count_macs(self.model, (3, SIDE, SIDE))
        self.model = self.model.to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.pictures = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 9, (BATCH,))

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            loss = nn.functional.cross_entropy(self.model(self.pictures), self.labels)
        loss.backward()
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
        "precision": step.precision,
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
    steps = {(name, precision): Step(name, precision) for name in MODELS for precision in PRECISIONS}
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    factors = {precision: torch.randn(2, ORDER, ORDER).to(dtype) for precision, dtype in PRECISIONS.items()}
    products: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for number in range(asked.rounds):
        for precision, pair in factors.items():
            products[precision].append(multiplication_gflops(*pair.unbind()))
        for key, step in steps.items():
            rates[key].append(step.pictures_a_second())
        print(f"round {number + 1}:", {" ".join(key): round(rates[key][-1], 1) for key in steps})
    arithmetic = {precision: statistics.median(rounds) for precision, rounds in products.items()}
    fastest = {name: max(PRECISIONS, key=lambda one: statistics.median(rates[name, one])) for name in MODELS}
    measured = json.loads(SPEED.read_text())["models"] if SPEED.is_file() else {}
    found = {
        "schema": 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "side": SIDE,
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "multiplication_gflops": {precision: round(value, 1) for precision, value in arithmetic.items()},
        "models": {
            name: figures(steps[name, one], rates[name, one], arithmetic[one], measured.get(name, {}))
            for name, one in fastest.items()
        },
    }
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
