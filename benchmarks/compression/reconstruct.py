"""What fitting layers anew after a cut gives before any recovery; writes reconstruct.json.

    python benchmarks/compression/reconstruct.py RUN [--prune 0.3 0.5 0.7]     # RUN: emoji.py's, WORK/lite0-0/run

The float variant of the run is pruned in both ways that `edgeopt compress --prune F` compares, its layers are fitted
anew or not, and BatchNorm's statistics gathered anew in all. Val and test tell what is left of the accuracy then.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeopt.compress.prune import plans, prunable
from edgeopt.compress.reconstruct import reconstruct
from edgeopt.config import CompressConfig
from edgeopt.console import Silent
from edgeopt.run import Run
from edgeopt.stages.training import TrainingPlan
from edgeopt.stages.variants import open_variant
from edgeopt.stages.workspace import open_workspace
from edgeopt.train.evaluate_torch import evaluator
from edgeopt.train.soup import refresh_batchnorm

OUT = Path(__file__).with_suffix(".json")


def measure(run: Run, fractions: list[float]) -> dict[str, Any]:
    """Rows by fraction: the whole network's figures, and the pruned one's as it is and fitted."""
    variant, workspace = open_variant(run, run.original()), open_workspace(run, data=None, console=Silent())
    spec, whole = variant.preprocess, variant.load()
    plan = TrainingPlan.for_recovery(CompressConfig(prune=fractions[0]))
    batches = list(plan.gradient_batches(workspace, spec))
    images = [pictures for pictures, _ in batches]
    judges = {name: evaluator(workspace.prepared(name, spec), spec) for name in ("val", "test")}

    def judged(model: nn.Module) -> dict[str, float]:
        found: dict[str, Mapping[str, float]] = {name: judge(model) for name, judge in judges.items()}
        return {f"{name}_{key}": round(row[key], 4) for name, row in found.items() for key in ("top1", "loss")}

    rows: dict[str, Any] = {"whole": judged(whole)}
    found = prunable(whole, example=torch.zeros(1, *spec.input_shape), gradient_batches=batches)
    for fraction in fractions:
        row = rows[f"{fraction:g}"] = {}
        for way, plan_of_cuts in plans(found, fraction=fraction, round_to=8, comparable=True).items():
            cut = found.cut(plan_of_cuts)
            fitted = copy.deepcopy(cut.model)
            refresh_batchnorm(cut.model.eval(), images)
            begin = time.perf_counter()
            layers = reconstruct(whole, fitted, cut.history, images)
            seconds = round(time.perf_counter() - begin, 1)
            refresh_batchnorm(fitted.eval(), images)
            row[way] = {"plain": judged(cut.model), "fitted": judged(fitted), "layers": layers, "seconds": seconds}
            print(fraction, way, row[way], flush=True)
    model = variant.architecture.full_name
    return {"model": model, "pictures": sum(len(labels) for _, labels in batches), "rows": rows}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prune", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    asked = parser.parse_args()
    found = measure(Run.open(asked.run), asked.prune)
    stated = {"schema": 1, "created": datetime.now(timezone.utc).isoformat(timespec="seconds"), **found}
    OUT.write_text(json.dumps(stated, indent=1) + "\n")


if __name__ == "__main__":
    main()
