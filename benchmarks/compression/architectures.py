"""Prune 30 % of the MACs of well-known architectures, train them in int8, run them in ONNX Runtime; writes the table.

    python benchmarks/compression/architectures.py                  # every one; architectures.json and architectures.md
    python benchmarks/compression/architectures.py resnet50 deit    # these, the others stay as they are
    python benchmarks/compression/architectures.py --table          # only the table, from the JSON

Full-size models with random weights (EfficientNet-Lite0: of ImageNet) on 3 classes of 40 small painted pictures, an
epoch each for training, recovery and quantization-aware training: this asks whether an architecture goes the whole way
(pruned, recovered, quantized, trained, reloaded, written as QDQ ONNX, built, answering as trained), not how accurate or
fast it is. What does not go through is in the table with the line that refuses it. Where one epoch leaves logits that
lie too close together for parity to tell, a model has more, and a rate for what starts at random.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt import CompressConfig, DataConfig, ModelConfig, TrainConfig, api, environment
from edgeopt.errors import EdgeoptError
from edgeopt.files import write_json

OUT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_suffix(".md")
TARGET = "onnxruntime"
PRUNE = 0.3


@dataclass(frozen=True)
class Architecture:
    """One model, and the share of the MACs that must run in int8."""

    key: str
    title: str
    model: str
    image_size: int
    share_macs: float = 1.0
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int = 1
    lr: float | None = None  # of all layers alike; None: finetune's default, deeper layers slower
    pretrained: bool = False


ARCHITECTURES = (
    Architecture("resnet18", "ResNet-18", "resnet18", 32),
    Architecture("resnet50", "ResNet-50", "resnet50", 32),
    # The classifier's two hidden layers of 4096 would be nine tenths of the weights and say nothing more.
    Architecture("vgg16", "VGG-16-BN", "vgg16_bn", 32, arguments={"mlp_ratio": 0.0625}),
    Architecture("mobilenetv2", "MobileNetV2", "mobilenetv2_100", 64, epochs=30, lr=3e-3),
    Architecture("mobilenetv3", "MobileNetV3-Large", "mobilenetv3_large_100", 64, 0.9, epochs=30, lr=3e-3),
    Architecture("efficientnet-b0", "EfficientNet-B0", "efficientnet_b0", 64, 0.9, epochs=30, lr=3e-3),
    Architecture("efficientnet-lite0", "EfficientNet-Lite0", "tf_efficientnet_lite0", 64, epochs=4, pretrained=True),
    Architecture("regnety", "RegNetY-200MF", "regnety_002", 64, 0.9),
    Architecture("convnext", "ConvNeXt-Atto", "convnext_atto", 64),
    Architecture("deit", "DeiT-Tiny", "deit_tiny_patch16_224", 64, 0.9),
    Architecture("mobilevit", "MobileViT-XXS", "mobilevit_xxs", 64, 0.9, epochs=4),
)


def push(one: Architecture, pictures: Path, run: Path) -> dict[str, Any]:
    """The record of one architecture: trained on the class folder ``pictures`` in the run folder ``run``."""
    run_made = api.finetune(
        DataConfig(path=str(pictures), image_size=one.image_size),
        ModelConfig(name=one.model, pretrained=one.pretrained, arguments=one.arguments),
        TrainConfig(
            epochs=one.epochs,
            **({"lr": one.lr, "layer_decay": 1.0} if one.lr else {}),
            batch_size=16,
            flip=False,
            ema_decay=0.0,
            augment="light",
            precision="fp32",  # said, so that nothing is probed for four steps of training
            memory_format="contiguous",
        ),
        run=run,
    ).run
    config = CompressConfig(prune=PRUNE, recovery_epochs=one.epochs, epochs=1)
    pruned, quantized = api.compress(run_made, config, targets=(TARGET,))
    built = {item.record["variant"]: item.record for item in api.build(run_made, TARGET)}
    fusion, parity = built[quantized.name]["fusion"], built[quantized.name]["parity"]
    counts = pruned.record["pruning"]
    return {
        "model": one.model,
        "arguments": one.arguments,
        "image_size": one.image_size,
        "epochs": one.epochs,
        **{name: counts[name] for name in ("macs_before", "macs_after", "parameters_before", "parameters_after")},
        "left_whole": counts["untouched"],  # by layer, why its width is what it was
        "compute_layers": fusion["compute_layers"],
        "int8_layers": fusion["int8_layers"],
        "int8_share_macs": fusion["int8_share_macs"],
        "parity_ok": parity["ok"],
        "pictures": parity["n"],
        "top1_agreement": parity["top1_agreement"],
        "mean_difference_over_std": parity["mean_abs_over_std"],
    }


def table(record: dict[str, Any]) -> str:
    """What was measured as a Markdown page."""
    columns = ("architecture", "model", "px", "MACs gone", "parameters gone", "int8 layers", "of the MACs",
               "top-1 as trained", "mean logit difference / spread")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for one in ARCHITECTURES:
        head = f"| {one.title} | `{one.model}` | {one.image_size} "
        row = record["architectures"].get(one.key)
        if row is None:
            lines.append(f"{head}| not measured |")
        elif "refused" in row:
            lines.append(f"{head}| refused: {row['refused']} |")
        else:
            lines.append(head + _cells(row))
    return "\n".join(
        [
            "# Architectures that go the whole way",
            "",
            "Written by `architectures.py`, which says what is done: `--prune 0.3`, then int8 on ONNX Runtime.",
            "",
            *lines,
            "",
        ]
    )


def _cells(row: dict[str, Any]) -> str:
    macs, parameters = (1 - row[f"{what}_after"] / row[f"{what}_before"] for what in ("macs", "parameters"))
    share = "not known" if row["int8_share_macs"] is None else f"{row['int8_share_macs']:.1%}"
    return (
        f"| {macs:.0%} | {parameters:.0%} | {row['int8_layers']} of {row['compute_layers']} | {share} "
        f"| {row['top1_agreement']:.1%} | {row['mean_difference_over_std']:.1%} |"
    )


def _kept(key: str, row: dict[str, Any]) -> dict[str, Any]:
    """The file with one more in it; read again, since others may be measured at the same time."""
    measured = {**(json.loads(OUT.read_text())["architectures"] if OUT.exists() else {}), key: row}
    order = [known.key for known in ARCHITECTURES if known.key in measured]
    record = {"environment": environment.record(), "architectures": {key: measured[key] for key in order}}
    write_json(OUT, record)
    PAGE.write_text(table(record), encoding="utf-8")
    return record


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", help="architectures; all by default")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    if arguments.table:
        PAGE.write_text(table(json.loads(OUT.read_text())), encoding="utf-8")
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from conftest import paint_folder

    os.environ.setdefault("OMP_NUM_THREADS", "2")
    by_key = {one.key: one for one in ARCHITECTURES}
    with tempfile.TemporaryDirectory() as name:
        pictures = paint_folder(Path(name) / "pictures")
        for one in [by_key[key] for key in arguments.keys or by_key]:
            try:
                row = push(one, pictures, Path(name) / one.key)
            except EdgeoptError as error:
                row = {"model": one.model, "refused": error.message.splitlines()[0][:300]}
            _kept(one.key, row)
            print(f"{one.key}: {row.get('refused') or row['int8_share_macs']}", flush=True)


if __name__ == "__main__":
    main()
