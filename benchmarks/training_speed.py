"""Training pictures a second, edgeopt's loop against one assembled from timm's own parts; writes training_speed.json.

    python benchmarks/training_speed.py --emoji FOLDER [--rounds 6] [--models tf_efficientnet_lite0 resnet18]

Contenders, each in a fresh process, in turn, round after round:

* ``edgeopt``: what `edgeopt finetune` runs, its defaults (AdamW with layer-wise rates, weight averaging, clipping).
* ``timm``: create_loader, create_optimizer_v2 and create_scheduler_v2 with the defaults of timm's training script
  (SGD, four loader workers, fp32).
* ``timm-bf16``: the same with autocast to bf16 and channels_last; in the first round only where the CPU has no bf16,
  which makes it several times slower than fp32 (one epoch then).

All train the same model from random weights on the same JPEG files with the same batch size, input size and
augmentation (random crop of at least 80 % of the area, mirror, colour jitter of 0.2), decoding counted, validation not.
``images_per_second`` is pictures trained on over seconds of decoding and steps; ``with_setup`` counts also the time
edgeopt takes to choose precision and memory format, which it does once a training. The ratio of a model is the median
of the rounds' ratios, its interval a bootstrap over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image

OUT = Path(__file__).with_suffix(".json")
SIDE, BATCH, PICTURES, EPOCHS, STORED_SIDE = 128, 32, 256, 3, 256
CONTENDERS = ("edgeopt", "timm", "timm-bf16")
CROP, JITTER, RATIO = 0.8, 0.2, (5 / 6, 6 / 5)


def write_pictures(emoji: Path, root: Path) -> None:
    """The first ``PICTURES`` of a shuffled list as JPEG files of 256x256 pixels, class by class."""
    import numpy as np

    from edgeopt.picture_files import open_picture
    from edgeopt.preprocess import to_rgb

    paths = sorted(emoji.glob("*/*.png"))
    for index in np.random.default_rng(0).permutation(len(paths))[:PICTURES]:
        target = root / paths[index].parent.name / f"{paths[index].stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = to_rgb(open_picture(paths[index])).resize((STORED_SIDE, STORED_SIDE), Image.Resampling.BICUBIC)
        picture.save(target, quality=90)


def run_edgeopt(root: Path, name: str) -> dict[str, Any]:
    """One training by edgeopt's loader and loop."""
    from edgeopt.config import AugmentConfig, DataConfig, TrainConfig
    from edgeopt.data.ingest import ingest
    from edgeopt.data.loader import TrainLoader
    from edgeopt.models import create, preprocess_of
    from edgeopt.preprocess import PreprocessSpec
    from edgeopt.stages.training import TrainingPlan
    from edgeopt.train.allocator import keep_memory
    from edgeopt.train.loop import train
    from edgeopt.train.losses import make_loss
    from edgeopt.train.objectives import Classification

    keep_memory()
    config = TrainConfig(epochs=EPOCHS, batch_size=BATCH, augment="light", patience=EPOCHS + 1)
    plan = TrainingPlan.for_finetuning(config, AugmentConfig(crop=CROP))
    dataset = ingest(DataConfig(path=str(root)))
    items = [item for split in ("train", "val", "test") for item in dataset.of(split)]
    created = create(name, num_classes=len(dataset.classes), pretrained=False, image_size=SIDE)
    spec = PreprocessSpec(**preprocess_of(created.architecture, image_size=SIDE))
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        loader = TrainLoader(
            dataset,
            items,
            spec,
            batch_size=BATCH,
            augment=plan.augment,
            changes=plan.augmentation,
            epochs=EPOCHS,
        )
        decoded = time.perf_counter() - start
        result = train(
            created.model,
            batches=loader,
            steps_per_epoch=len(loader),
            evaluate=lambda model: {"top1": 0.0, "loss": 0.0},
            objective=Classification(make_loss("cross_entropy", label_smoothing=0.1, class_counts=[])),
            config=plan.loop,
            folder=Path(work),
        )
        whole = time.perf_counter() - start
    trained = EPOCHS * len(loader) * BATCH
    return {
        "images_per_second": trained / (decoded + trained / result.images_per_second),
        "with_setup": trained / whole,
        "decoding_seconds": decoded,
        "way": f"{result.precision} {result.memory_format}",
    }


def run_timm(root: Path, name: str, *, bf16: bool) -> dict[str, Any]:
    """One training by timm's parts, its script's defaults where it has some."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    from edgeopt import environment

    dataset = create_dataset("", root=str(root), split="train", is_training=True)
    model = timm.create_model(name, num_classes=len(dataset.reader.class_to_idx))
    layout = torch.channels_last if bf16 else torch.contiguous_format
    model = model.to(memory_format=layout)
    loader = create_loader(
        dataset,
        input_size=(3, SIDE, SIDE),
        batch_size=BATCH,
        is_training=True,
        use_prefetcher=False,
        num_workers=4,  # as timm's training script
        scale=(CROP, 1.0),
        ratio=RATIO,
        hflip=0.5,
        color_jitter=(JITTER, JITTER, JITTER),
        interpolation="bicubic",
        device=torch.device("cpu"),
    )
    optimizer = create_optimizer_v2(model, lr=0.01, weight_decay=2e-5)
    updates = len(loader)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=EPOCHS, updates_per_epoch=updates)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    model.train()
    trained, start = 0, time.perf_counter()
    for epoch in range(1 if bf16 and not environment.has_bf16() else EPOCHS):
        for index, (images, targets) in enumerate(loader):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = loss_of(model(images.to(memory_format=layout)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            scheduler.step_update(num_updates=epoch * updates + index + 1)
            trained += len(targets)
        scheduler.step(epoch + 1)
    seconds = time.perf_counter() - start
    return {"images_per_second": trained / seconds, "with_setup": trained / seconds}


def measure(root: Path, models: list[str], rounds: int) -> dict[str, Any]:
    """Every contender in a fresh process, in turn, ``rounds`` times a model."""
    from edgeopt import environment
    from edgeopt.train.allocator import huge_pages_on_request

    found: dict[str, Any] = {}
    for name in models:
        rows: dict[str, list[dict[str, Any]]] = {contender: [] for contender in CONTENDERS}
        for turn in range(rounds):
            for contender in CONTENDERS[turn % 3 :] + CONTENDERS[: turn % 3]:
                if contender == "timm-bf16" and turn and not environment.has_bf16():
                    continue
                command = [sys.executable, __file__, "--one", contender, "--models", name, "--pictures", str(root)]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
                rows[contender].append(json.loads(said.stdout.splitlines()[-1]))
                print(name, turn, contender, rows[contender][-1], file=sys.stderr, flush=True)
        found[name] = {"rounds": rows, **{f"over_{other}": ratios(rows, other) for other in CONTENDERS[1:]}}
        record = {
            "schema": 1,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "side": SIDE,
            "batch": BATCH,
            "pictures": PICTURES,
            "epochs": EPOCHS,
            "huge_pages_on_request": huge_pages_on_request(),  # then edgeopt asks for them
            "models": {**_before(), **found},
            "environment": environment.record(),
        }
        OUT.write_text(json.dumps(record, indent=1) + "\n")
    return found


def _before() -> dict[str, Any]:
    """What other models were measured at, so that they can be measured one by one."""
    return json.loads(OUT.read_text())["models"] if OUT.is_file() else {}


def ratios(rows: dict[str, list[dict[str, Any]]], other: str) -> dict[str, Any]:
    """edgeopt's pictures a second over ``other``'s, paired by round."""
    from edgeopt.bench.result import bounds
    from edgeopt.metrics import ratio_interval

    found = {}
    for figure in ("images_per_second", "with_setup"):
        theirs = [row[figure] for row in rows[other]]
        ours = [row[figure] for row in rows["edgeopt"]][: len(theirs)]
        ratio = ratio_interval(ours, theirs)
        medians = {"edgeopt": statistics.median(ours), other: statistics.median(theirs)}
        found[figure] = {"ratio": ratio.value, "ci": bounds(ratio), "rounds": len(ours), "medians": medians}
    return found


def main() -> None:
    """Measure, or run one contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--models", nargs="+", default=["tf_efficientnet_lite0", "resnet18"])
    parser.add_argument("--one", choices=CONTENDERS)
    asked = parser.parse_args()
    if asked.one == "edgeopt":
        print(json.dumps(run_edgeopt(asked.pictures, asked.models[0])))
    elif asked.one:
        print(json.dumps(run_timm(asked.pictures, asked.models[0], bf16=asked.one == "timm-bf16")))
    else:
        with tempfile.TemporaryDirectory() as work:
            write_pictures(asked.emoji, Path(work))
            measure(Path(work), asked.models, asked.rounds)


if __name__ == "__main__":
    main()
