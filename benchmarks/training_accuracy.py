"""`edgeopt finetune`'s defaults against the tutorial's recipe, every picture tested once: training_accuracy.json.

    python benchmarks/training_accuracy.py --emoji FOLDER [--epochs 10] [--size 96]

Emoji are FOLDER/CLASS/CODE-VENDOR.png; both drawings of an emoji are one group. Groups are dealt into three folds, each
in turn the test set, an eighth of the other groups val. Both recipes start from the same ImageNet weights of the same
model and see the same train pictures for the same number of epochs at the same size, and both keep the epoch that is
best on val:

* ``edgeopt``: `edgeopt finetune MANIFEST --epochs E --image-size S`, everything else as it comes.
* ``tutorial``: torchvision's Resize and RandomHorizontalFlip, Normalize with the model's mean and deviation, batches of
  32, Adam with a learning rate of 0.001, cross-entropy: PyTorch's transfer-learning tutorial.

The test pictures of both go through the same preprocessing code. The figures are pooled over the folds: accuracies on
all pictures, their paired difference with its interval, and McNemar's exact test.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import shutil
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDS, VAL_SHARE, BATCH = 3, 8, 32
OUT = Path(__file__).with_suffix(".json")
Bools = npt.NDArray[np.bool_]


def write_manifest(manifest: Path, fold: int, *, most: int | None) -> None:
    """Rows of path, label, split and group: ``fold`` is test, an eighth of what is left val."""
    paths = sorted(manifest.parent.glob("*/*.png"))
    groups = sorted({_group(path) for path in paths})
    order = np.random.default_rng(0).permutation(len(groups))[:most]
    place = {groups[index]: position for position, index in enumerate(order)}
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "split", "group"))
        for path in paths:
            position = place.get(_group(path))
            if position is None:
                continue
            val = position // FOLDS % VAL_SHARE == 0
            split = "test" if position % FOLDS == fold else "val" if val else "train"
            rows.writerow((path.relative_to(manifest.parent), path.parent.name, split, _group(path)))


def _group(path: Path) -> str:
    return f"{path.parent.name}/{path.stem.rsplit('-', 1)[0]}"


def by_edgeopt(manifest: Path, work: Path, *, model: str, epochs: int, size: int, train: dict[str, Any]) -> Any:
    """The model `edgeopt finetune` makes, and its preprocessing."""
    from edgeopt import api, models
    from edgeopt.config import DataConfig, ModelConfig, TrainConfig
    from edgeopt.preprocess import PreprocessSpec

    data = DataConfig(path=str(manifest), image_size=size)
    api.finetune(data, ModelConfig(name=model), TrainConfig(epochs=epochs, **train), run=work / "run")
    variant = work / "run" / "host" / "float"
    return models.load(variant), PreprocessSpec.read(variant / "preprocess.json")


def by_tutorial(dataset: Any, *, model: str, epochs: int, size: int) -> Any:
    """The tutorial's loop on the dataset's train and val pictures: (model, preprocessing)."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    from edgeopt import models
    from edgeopt.preprocess import PreprocessSpec

    torch.manual_seed(0)
    created = models.create(model, num_classes=len(dataset.classes), image_size=size)
    spec = PreprocessSpec(**{**models.preprocess_of(created.architecture, image_size=size), "resize": "squash"})
    net = created.model
    head = net.get_classifier()
    head.reset_parameters()  # as the tutorial's fresh nn.Linear
    common = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
    resize = v2.Resize(spec.size, antialias=True)
    train_steps = v2.Compose([resize, v2.RandomHorizontalFlip(), *common])
    val_steps = v2.Compose([resize, *common])
    pictures = {
        split: _Pictures(dataset, split, steps) for split, steps in (("train", train_steps), ("val", val_steps))
    }
    loaders = {name: DataLoader(data, BATCH, shuffle=name == "train") for name, data in pictures.items()}
    optimizer, loss_of = torch.optim.Adam(net.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    best, kept = -1.0, None
    for _ in range(epochs):
        net.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            loss_of(net(images), labels).backward()
            optimizer.step()
        net.eval()
        with torch.inference_mode():
            right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in loaders["val"])
        if right > best:
            best, kept = right, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)
    return net.eval(), spec


class _Pictures:
    """A split as (picture, label), decoded at every access, as ImageFolder does."""

    def __init__(self, dataset: Any, split: str, steps: Any) -> None:
        self._dataset, self._items, self._steps = dataset, dataset.of(split), steps

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        from edgeopt.preprocess import to_rgb

        item = self._items[index]
        with self._dataset.open(item) as image:
            return self._steps(to_rgb(image)), item.label


def right_on_test(model: Any, dataset: Any, spec: Any) -> Bools:
    """Whether each test picture is answered right."""
    import torch

    from edgeopt.data.sets import load_item
    from edgeopt.preprocess import normalize

    items, right = dataset.of("test"), []
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        pictures = np.stack([load_item(dataset, item, spec) for item in some])
        with torch.inference_mode():
            answers = model(torch.from_numpy(normalize(pictures, spec))).argmax(1).numpy()
        right.append(answers == np.array([item.label for item in some]))
    return np.concatenate(right)


def main() -> None:
    """Run the folds that are asked for and pool those that are there."""
    from edgeopt.config import DataConfig
    from edgeopt.data.ingest import ingest

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--most-groups", type=int, help="for a trial: fewer emoji; nothing is recorded")
    parser.add_argument("--train", type=json.loads, default={}, help="for a trial: keys of [train] as JSON")
    asked = parser.parse_args()
    common = {"model": asked.model, "epochs": asked.epochs, "size": asked.size}
    trial = bool(asked.most_groups or asked.train)
    for fold in asked.folds:
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            manifest = shutil.copytree(asked.emoji, work / "emoji") / "emoji.csv"
            write_manifest(manifest, fold, most=asked.most_groups)
            start = time.monotonic()
            ours, our_spec = by_edgeopt(manifest, work, **common, train=asked.train)
            between = time.monotonic()
            dataset = ingest(DataConfig(path=str(manifest)))
            theirs, their_spec = by_tutorial(dataset, **common)
            end = time.monotonic()
            rows = {
                "edgeopt": right_on_test(ours, dataset, our_spec),
                "tutorial": right_on_test(theirs, dataset, their_spec),
            }
            seconds = {"edgeopt": round(between - start, 1), "tutorial": round(end - between, 1)}
        print(fold, {who: round(float(row.mean()), 4) for who, row in rows.items()}, seconds, flush=True)
        if not trial:
            _record(fold, rows, seconds, common)


def _record(fold: int, rows: dict[str, Bools], seconds: dict[str, float], common: dict[str, Any]) -> None:
    """Add a fold to the file, and pool all that are there."""
    from edgeopt import environment
    from edgeopt.metrics import paired_drop

    record = json.loads(OUT.read_text()) if OUT.is_file() else {}
    if record.get("setting") != common:
        record = {"schema": 1, "setting": common, "folds": {}}
    record["folds"][str(fold)] = {
        "pictures": len(rows["edgeopt"]),
        "right": {who: int(row.sum()) for who, row in rows.items()},
        "only_edgeopt_right": int((rows["edgeopt"] & ~rows["tutorial"]).sum()),
        "only_tutorial_right": int((~rows["edgeopt"] & rows["tutorial"]).sum()),
        "seconds": seconds,
    }
    folds = record["folds"].values()
    n = sum(row["pictures"] for row in folds)
    gained, lost = (sum(row[f"only_{who}_right"] for row in folds) for who in ("edgeopt", "tutorial"))
    # The pooled 2x2 table says all that a paired difference needs.
    tutorial, edgeopt = np.ones(n, bool), np.ones(n, bool)
    tutorial[:gained] = False
    edgeopt[gained : gained + lost] = False
    found = paired_drop(tutorial, edgeopt)
    record["pooled"] = {
        "pictures": n,
        "top1": {who: sum(row["right"][who] for row in folds) / n for who in ("edgeopt", "tutorial")},
        "gain_points": -found.drop_points,
        "gain_ci_points": [-found.ci_points[1], -found.ci_points[0]],
        "mcnemar_p": found.mcnemar_p,
    }
    record["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record["environment"] = environment.record()
    OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
