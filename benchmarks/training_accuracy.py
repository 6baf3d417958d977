"""`edgeopt finetune`'s defaults against two well-known scripts, every picture tested once: training_accuracy.json.

    python benchmarks/training_accuracy.py --emoji FOLDER [--against tutorial ten-lines] [--folds 0 1 2]

Emoji are FOLDER/CLASS/CODE-VENDOR.png of 64x64 pixels; both drawings of an emoji are one group. Groups are dealt into
three folds, each in turn the test set, an eighth of the other groups val. Both sides start from the same weights of the
same model and see the same train pictures for the same number of epochs at the same size.

* ``tutorial``: PyTorch's transfer-learning tutorial as it is mostly copied: ImageNet weights of tf_efficientnet_lite0,
  Resize, RandomHorizontalFlip, Normalize, batches of 32, Adam with a learning rate of 0.001, the best epoch on val;
  against `edgeopt finetune MANIFEST --image-size 64 --epochs 10`.
* ``ten-lines``: the CIFAR-10 script everybody has written: torchvision's resnet18 from random weights, ToTensor and
  Normalize(0.5, 0.5), batches of 64, Adam with 0.001, the last epoch, on 32x32 pixels; against
  `edgeopt finetune MANIFEST --model torchvision:resnet18 --no-pretrained --image-size 32 --epochs 20`.

The test pictures of both go through the same preprocessing code. The figures are pooled over the folds: accuracies on
all pictures, their paired difference with its interval, and McNemar's exact test.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from emoji_folds import FOLDS, write_manifest

BATCH = 32
#: What both sides share.
COMMON: dict[str, dict[str, Any]] = {
    "tutorial": {"model": "tf_efficientnet_lite0", "pretrained": True, "epochs": 10, "size": 64},
    "ten-lines": {"model": "torchvision:resnet18", "pretrained": False, "epochs": 20, "size": 32},
}
OUT = Path(__file__).with_suffix(".json")
Bools = npt.NDArray[np.bool_]


def by_edgeopt(
    manifest: Path, work: Path, *, model: str, pretrained: bool, epochs: int, size: int, train: dict[str, Any]
) -> Any:
    """The model `edgeopt finetune` makes, and its preprocessing."""
    from edgeopt import api, models
    from edgeopt.config import DataConfig, ModelConfig, TrainConfig
    from edgeopt.preprocess import PreprocessSpec

    data = DataConfig(path=str(manifest), image_size=size)
    model_config = ModelConfig(name=model, pretrained=pretrained)
    api.finetune(data, model_config, TrainConfig(epochs=epochs, **train), run=work / "run")
    variant = work / "run" / "host" / "float"
    return models.load(variant), PreprocessSpec.read(variant / "preprocess.json")


def by_tutorial(dataset: Any, *, model: str, pretrained: bool, epochs: int, size: int) -> Any:
    """Transfer learning by the tutorial: (model, preprocessing)."""
    import torch
    from torchvision.transforms import v2

    from edgeopt import models
    from edgeopt.preprocess import PreprocessSpec

    torch.manual_seed(0)
    created = models.create(model, num_classes=len(dataset.classes), image_size=size, pretrained=pretrained)
    created.model.get_classifier().reset_parameters()  # as the tutorial's fresh nn.Linear
    stated = models.preprocess_of(created.architecture, image_size=size)
    spec = PreprocessSpec(**{**stated, "resize": "squash"})
    resize = v2.Resize(spec.size, antialias=True)
    common = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
    steps = {"train": [resize, v2.RandomHorizontalFlip(), *common], "val": [resize, *common]}
    return _by_adam(created.model, dataset, steps, epochs=epochs, batch=32, keep="best"), spec


def by_ten_lines(dataset: Any, *, model: str, pretrained: bool, epochs: int, size: int) -> Any:
    """The CIFAR-10 script: (model, preprocessing)."""
    import torch
    from torchvision.transforms import v2

    from edgeopt import models
    from edgeopt.preprocess import PreprocessSpec

    torch.manual_seed(0)
    created = models.create(model, num_classes=len(dataset.classes), image_size=size, pretrained=pretrained)
    half = (0.5, 0.5, 0.5)
    stated = models.preprocess_of(created.architecture, image_size=size)
    spec = PreprocessSpec(**{**stated, "resize": "squash", "mean": half, "std": half})
    steps = [v2.Resize(spec.size, antialias=True), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps = [*steps, v2.Normalize(half, half)]
    return _by_adam(created.model, dataset, {"train": steps}, epochs=epochs, batch=64, keep="last"), spec


def _by_adam(
    model: Any, dataset: Any, steps: dict[str, list[Any]], *, epochs: int, batch: int, keep: Literal["best", "last"]
) -> Any:
    """The loop of both scripts."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    loaders = {
        split: DataLoader(_Pictures(dataset, split, v2.Compose(how)), batch, shuffle=split == "train")
        for split, how in steps.items()
    }
    optimizer, loss_of = torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    best, kept = -1.0, model.state_dict()
    for _ in range(epochs):
        model.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            loss_of(model(images), labels).backward()
            optimizer.step()
        if keep == "last":
            continue
        model.eval()
        with torch.inference_mode():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loaders["val"])
        if right > best:
            best, kept = right, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model.eval()


SCRIPTS = {"tutorial": by_tutorial, "ten-lines": by_ten_lines}


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--against", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--most-groups", type=int, help="for a trial: fewer emoji; nothing is recorded")
    parser.add_argument("--train", type=json.loads, default={}, help="for a trial: keys of [train] as JSON")
    asked = parser.parse_args()
    for script in asked.against:
        for fold in asked.folds:
            rows, seconds = _compare(script, fold, asked.emoji, most=asked.most_groups, train=asked.train)
            print(script, fold, {who: round(float(row.mean()), 4) for who, row in rows.items()}, seconds, flush=True)
            if not asked.most_groups and not asked.train:
                _record(script, fold, rows, seconds)


def _compare(
    script: str, fold: int, emoji: Path, *, most: int | None, train: dict[str, Any]
) -> tuple[dict[str, Bools], dict[str, float]]:
    """Which test pictures of a fold each side answers rightly, and the seconds each took."""
    from edgeopt.config import DataConfig
    from edgeopt.data.ingest import ingest

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        manifest = shutil.copytree(emoji, work / "emoji") / "emoji.csv"
        write_manifest(manifest, fold, most=most)
        start = time.monotonic()
        ours, our_spec = by_edgeopt(manifest, work, **COMMON[script], train=train)
        between = time.monotonic()
        dataset = ingest(DataConfig(path=str(manifest)))
        theirs, their_spec = SCRIPTS[script](dataset, **COMMON[script])
        end = time.monotonic()
        rows = {
            "edgeopt": right_on_test(ours, dataset, our_spec),
            "script": right_on_test(theirs, dataset, their_spec),
        }
    return rows, {"edgeopt": round(between - start, 1), "script": round(end - between, 1)}


def _record(script: str, fold: int, rows: dict[str, Bools], seconds: dict[str, float]) -> None:
    """Add a fold to the file, and pool all that are there."""
    from edgeopt import environment
    from edgeopt.metrics import paired_drop

    whole = json.loads(OUT.read_text()) if OUT.is_file() else {"schema": 1, "against": {}}
    record = whole["against"].get(script, {})
    if record.get("setting") != COMMON[script]:
        record = {"setting": COMMON[script], "folds": {}}
    record["folds"][str(fold)] = {
        "pictures": len(rows["edgeopt"]),
        "right": {who: int(row.sum()) for who, row in rows.items()},
        "only_edgeopt_right": int((rows["edgeopt"] & ~rows["script"]).sum()),
        "only_script_right": int((~rows["edgeopt"] & rows["script"]).sum()),
        "seconds": seconds,
    }
    folds = record["folds"].values()
    n = sum(row["pictures"] for row in folds)
    gained, lost = (sum(row[f"only_{who}_right"] for row in folds) for who in ("edgeopt", "script"))
    # The pooled 2x2 table says all that a paired difference needs.
    theirs, ours = np.ones(n, bool), np.ones(n, bool)
    theirs[:gained] = False
    ours[gained : gained + lost] = False
    found = paired_drop(theirs, ours)
    record["pooled"] = {
        "pictures": n,
        "top1": {who: sum(row["right"][who] for row in folds) / n for who in ("edgeopt", "script")},
        "gain_points": -found.drop_points,
        "gain_ci_points": [-found.ci_points[1], -found.ci_points[0]],
        "mcnemar_p": found.mcnemar_p,
    }
    whole["against"][script] = record
    whole["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    whole["environment"] = environment.record()
    OUT.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
