"""BatchNorm in quantization-aware training: statistics frozen throughout, or after the first epoch; writes a JSON.

    python benchmarks/compression/qat_batchnorm.py --run RUN --work FOLDER [--seeds 1] [--epochs 3] [--scheme u8a7w]

RUN is a run that was fine-tuned; its original is quantized once, and trained on with its own recipe and the float model
as the teacher, once a setting and seed, in FOLDER (what is finished there is not repeated). Judged on val and test
together, all pictures, in PyTorch: top-1, mean log-loss, and the paired difference of log-loss to ``frozen`` with a
bootstrap interval over pictures; negative is better. A seed changes order and augmentation, not the pictures.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgeopt.compress.quantize import quantize
from edgeopt.config import CompressConfig, load_calibration
from edgeopt.console import Silent
from edgeopt.environment import cpu
from edgeopt.run import Run
from edgeopt.schemes import get_scheme
from edgeopt.stages.passes import Job, training_recipe
from edgeopt.stages.teachers import find_teacher
from edgeopt.stages.training import TrainingPlan, fit
from edgeopt.stages.variants import open_variant
from edgeopt.stages.workspace import Workspace, open_workspace
from edgeopt.train.evaluate_torch import logits

OUT = Path(__file__).with_suffix(".json")
SETTINGS = {"frozen": 0.0, "after1": 1.0}  # batchnorm_epochs
Array = npt.NDArray[np.float64]


def judged(model: nn.Module, workspace: Workspace, spec: Any) -> tuple[float, Array]:
    """Top-1, and the log-loss of each picture of val and test."""
    sets = [workspace.prepared(name, spec) for name in ("val", "test")]
    answers = torch.from_numpy(np.concatenate([logits(model, one, spec) for one in sets])).double()
    labels = torch.from_numpy(np.concatenate([np.array(one.labels) for one in sets]))
    losses = nn.functional.cross_entropy(answers, labels, reduction="none").numpy()
    return float((answers.argmax(dim=1) == labels).double().mean()), losses


def row(found: tuple[float, Array], base: Array | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"top1": round(found[0], 4), "loss": round(float(found[1].mean()), 4)}
    if base is not None:
        apart = found[1] - base
        drawn = np.random.default_rng(0).choice(apart, (4000, len(apart))).mean(axis=1)
        made["loss_difference"] = round(float(apart.mean()), 4)
        made["loss_difference_ci"] = [round(float(one), 4) for one in np.quantile(drawn, (0.025, 0.975))]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--scheme", default="u8a7w")
    options = parser.parse_args()
    run = Run.open(options.run)
    start, workspace = open_variant(run, run.original()), open_workspace(run)
    spec, teacher = start.preprocess, find_teacher(run, run.original())
    pictures = workspace.calibration(load_calibration("default"), spec)
    batches = [torch.from_numpy(batch) for batch in pictures.batches(spec, 16)]
    quantized = quantize(start.load(), batches, scheme=get_scheme(options.scheme))
    alike = training_recipe(cast(Job, SimpleNamespace(start=start)))
    rows = {"float": row(judged(start.load(), workspace, spec)), "ptq": row(judged(quantized, workspace, spec))}
    for seed in range(options.seeds):
        base: Array | None = None
        for name, epochs in SETTINGS.items():
            config = CompressConfig(epochs=options.epochs, batchnorm_epochs=epochs)
            plan = TrainingPlan.for_qat(config, **{**alike, "seed": seed})
            model, folder = copy.deepcopy(quantized), options.work / f"{name}{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            fit(plan, model, workspace, spec, folder=folder, console=Silent(), teacher=teacher)
            found = judged(model, workspace, spec)
            rows[f"{name}, seed {seed}"] = row(found, base)
            print(name, seed, rows[f"{name}, seed {seed}"], f"{time.monotonic() - began:.0f} s", flush=True)
            base = found[1] if base is None else base
    record = {
        "schema": 1,
        "model": start.architecture.name,
        "input": list(spec.size),
        "pictures": workspace.dataset.counts(),
        "epochs": options.epochs,
        "scheme": options.scheme,
        "rows": rows,
        "cpu": cpu()["name"],
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
