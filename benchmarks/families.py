"""Push one model of each family through finetune, prune, int8 and ONNX Runtime; writes families.json and its table.

    python benchmarks/families.py                 # every family; the table goes into benchmarks/README.md
    python benchmarks/families.py vit maxvit      # these, the others stay as they are in families.json
    python benchmarks/families.py --table         # only the table, from families.json

Weights are random, the pictures 3 classes of 24 painted ones, an epoch each for training and for int8 (where a family
has more, its logits lie too close together after one for parity to tell): this asks what of a family's operators runs
in int8 and whether the engine answers as trained, not how accurate or fast it is. The
share counts every convolution, gemm and matmul the runtime executed, products of two activations included. Parity is
the build's own judgement on calibration pictures. Pruning asks for 30 % of the MACs.
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
from edgeopt.errors import ModelError
from edgeopt.files import write_json

OUT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- families.py writes from here -->", "<!-- to here -->"
TARGET = "onnxruntime"


@dataclass(frozen=True)
class Family:
    """One model that shows a family's operators. ``share`` and ``share_macs`` are floors that the test holds it to."""

    key: str
    title: str
    model: str
    image_size: int
    share: float  # of all compute layers
    share_macs: float  # of all multiply-accumulates
    left_in_float: str = ""  # what, and why
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int = 1


_SE = "squeeze-and-excitation's 1x1 convolutions on one pixel: NNCF keeps these gates in float"
_ATTENTION = "products of queries, keys and values, both activations"

FAMILIES = (
    Family("vgg", "VGG", "vgg11_bn", 32, 1.0, 1.0, arguments={"mlp_ratio": 0.0625}),
    Family("resnet", "ResNet", "resnet18", 32, 1.0, 1.0),
    Family("torchvision", "ResNet (torchvision)", "torchvision:resnet18", 32, 1.0, 1.0),
    Family("inception", "Inception", "inception_v3", 96, 1.0, 1.0),
    Family("mobilenetv2", "MobileNetV2", "mobilenetv2_035", 64, 1.0, 1.0),
    # On AVX-512 ONNX Runtime pads the gates' channels to 16, and runs more MACs in float for it: 0.936, not 0.944.
    Family("mobilenetv3", "MobileNetV3", "mobilenetv3_small_050", 64, 0.66, 0.93, _SE),
    Family("mobilenetv4", "MobileNetV4", "mobilenetv4_conv_small_035", 64, 1.0, 1.0, epochs=4),
    Family("efficientnet", "EfficientNet", "efficientnet_b0", 64, 0.6, 0.97, _SE),
    Family("efficientnet-lite", "EfficientNet-Lite", "tf_efficientnet_lite0", 64, 1.0, 1.0),
    Family("regnetx", "RegNetX", "regnetx_002", 64, 1.0, 1.0),
    Family("regnety", "RegNetY", "regnety_002", 64, 0.6, 0.95, _SE),
    Family("convnext", "ConvNeXt", "convnext_atto", 64, 1.0, 1.0),
    Family("vit", "ViT", "vit_tiny_patch16_224", 64, 0.69, 0.98, _ATTENTION, {"depth": 4}),
    Family("deit", "DeiT", "deit_tiny_distilled_patch16_224", 64, 0.6, 0.9, _ATTENTION, {"depth": 4}),
    Family("mobilevit", "MobileViT", "mobilevit_xxs", 64, 0.79, 0.98, _ATTENTION),
    Family("levit", "LeViT", "levit_128s", 64, 0.85, 0.99, _ATTENTION),
    Family("coatnet", "CoAtNet", "coatnet_nano_rw_224", 64, 0.6, 0.9, f"{_ATTENTION}; {_SE}"),
    Family("maxvit", "MaxViT", "test_maxvit", 64, 0.67, 0.98, f"{_ATTENTION}; {_SE}"),
)


def push(family: Family, pictures: Path, run: Path, *, prune: bool = False) -> dict[str, Any]:
    """The record of one family: trained on the class folder ``pictures`` in the run folder ``run``."""
    trained = api.finetune(
        DataConfig(path=str(pictures), image_size=family.image_size),
        ModelConfig(name=family.model, pretrained=False, arguments=family.arguments),
        TrainConfig(
            epochs=family.epochs,
            batch_size=16,
            flip=False,
            ema_decay=0.0,
            augment="light",
            precision="fp32",  # said, so that nothing is probed for four steps of training
            memory_format="contiguous",
        ),
        run=run,
    )
    api.compress(trained.run, CompressConfig(epochs=1), targets=(TARGET,))
    built = {item.record["precision"]: item.record for item in api.build(trained.run, TARGET)}
    fusion, parity = built["int8"]["fusion"], built["int8"]["parity"]
    record = {
        "family": family.title,
        "model": family.model,
        "arguments": family.arguments,
        "image_size": family.image_size,
        "epochs": family.epochs,
        "parameters": trained.record["metrics"]["parameters"],
        "macs": trained.record["metrics"]["macs"],
        "scheme": built["int8"]["scheme"],
        "compute_layers": fusion["compute_layers"],
        "int8_layers": fusion["int8_layers"],
        "int8_share": fusion["int8_share"],
        "int8_share_macs": fusion["int8_share_macs"],
        "float_layers": fusion["float_layers"],
        "left_in_float": family.left_in_float,
        "parity_ok": parity["ok"],
        "pictures": parity["n"],
        "top1_agreement": parity["top1_agreement"],
        "mean_difference_over_std": parity["mean_abs_over_std"],
        "float_largest_relative_difference": built["fp32"]["parity"]["max_relative"],
    }
    if prune:
        record["pruning"] = _pruned(trained.run)
    return record


def _pruned(run: Any) -> str:
    """What became of ``--prune 0.3``: the share of the MACs that is gone, or the line that refuses it."""
    try:
        variant = api.compress(run, CompressConfig(int8=False, prune=0.3, recovery_epochs=0))[0]
    except ModelError as error:
        return error.message
    counts = variant.record["pruning"]
    return f"{1 - counts['macs_after'] / counts['macs_before']:.0%} of the MACs"


def table(record: dict[str, Any]) -> str:
    """The measured families as a Markdown table."""
    columns = (
        "family", "model", "px", "compute layers in int8", "of the MACs", "top-1 as trained",
        "mean logit difference / spread", "`--prune 0.3`", "left in float",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for family in FAMILIES:
        row = record["families"].get(family.key)
        lines.append(
            _line(row) if row else f"| {family.title} | `{family.model}` | {family.image_size} | not measured |"
        )
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    macs = "not known" if row["int8_share_macs"] is None else f"{row['int8_share_macs']:.1%}"
    arguments = "".join(f", {key}={value}" for key, value in row["arguments"].items())
    return (
        f"| {row['family']} | `{row['model']}`{arguments} | {row['image_size']} "
        f"| {row['int8_layers']} of {row['compute_layers']} ({row['int8_share']:.0%}) | {macs} "
        f"| {row['top1_agreement']:.1%} | {row['mean_difference_over_std']:.1%} "
        f"| {row.get('pruning', 'not tried')} | {row['left_in_float'] or 'nothing'} |"
    )


def write_page(record: dict[str, Any]) -> None:
    """Put the table between its markers."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table(record)}\n{END}{after}", encoding="utf-8")


def _kept(key: str, row: dict[str, Any]) -> dict[str, Any]:
    """The file with one more family in it; read again, since others may be measured at the same time."""
    measured = {**(json.loads(OUT.read_text())["families"] if OUT.exists() else {}), key: row}
    order = [known.key for known in FAMILIES if known.key in measured]
    record = {"environment": environment.record(), "families": {key: measured[key] for key in order}}
    write_json(OUT, record)
    return record


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", help="families; all by default")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    record = json.loads(OUT.read_text()) if OUT.exists() else {"families": {}}
    if not arguments.table:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
        from conftest import paint_folder

        os.environ.setdefault("OMP_NUM_THREADS", "2")
        by_key = {family.key: family for family in FAMILIES}
        chosen = [by_key[key] for key in arguments.keys or by_key]
        with tempfile.TemporaryDirectory() as name:
            pictures = paint_folder(Path(name) / "pictures", each=24)
            for family in chosen:
                row = push(family, pictures, Path(name) / family.key, prune=True)
                record = _kept(family.key, row)
                counts = f"{row['int8_layers']} of {row['compute_layers']} in int8"
                print(f"{family.key}: {counts}; prune: {row['pruning']}", flush=True)
    write_page(record)


if __name__ == "__main__":
    main()
