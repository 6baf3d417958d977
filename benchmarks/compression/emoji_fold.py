"""One fold of the emoji benchmark: its folders, its run, the record so far, and how engines get a row in it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from emoji_table import packed

from edgeopt import CompressConfig, Run, api, environment
from edgeopt.cli.common import Terminal
from edgeopt.config import load_calibration
from edgeopt.evaluate import evaluate
from edgeopt.files import read_json, write_json
from edgeopt.stages.engines import engines
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.workspace import Workspace, open_workspace
from edgeopt.train.evaluate_torch import logits

OUT = Path(__file__).parent / "emoji"
TARGETS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Setting:
    """A model, how it is fine-tuned, and the side of its rival's input."""

    model: str
    pretrained: bool
    size: int
    epochs: int
    rival: int


SETTINGS = {
    "lite0": Setting("tf_efficientnet_lite0", True, 128, 12, 96),
    "resnet18": Setting("resnet18", False, 96, 40, 64),
}


@dataclass
class Fold:
    """One fold of one model: its folders, its run, and the record so far."""

    name: str
    fold: int
    asked: argparse.Namespace
    work: Path
    record: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.setting = SETTINGS[self.name]
        self.console = Terminal()
        if self.kept.is_file():
            self.record = read_json(self.kept)
        stated = {**vars(self.setting), "qat_epochs": self.asked.qat_epochs, "prune": 0.5}
        stated |= {"recovery_epochs": self.asked.recovery_epochs, "trial": self.asked.trial}
        if self.record.get("setting", stated) != stated:
            sys.exit(f"{self.work} was begun with other settings: {self.record['setting']}; take another --work")
        self.record = {"schema": 1, "name": self.name, "fold": self.fold, "setting": stated, "rows": {}, "minutes": {},
                       "refused": {}, "bench": {}} | self.record  # fmt: skip

    @property
    def kept(self) -> Path:
        return self.work / "record.json"

    @property
    def run(self) -> Run:
        return Run.open(self.work / "run")

    @property
    def workspace(self) -> Workspace:
        return open_workspace(self.run, console=self.console)

    @property
    def original(self) -> Variant:
        return open_variant(self.run, self.run.original())

    def epochs(self, wanted: int) -> int:
        return 1 if self.asked.trial else wanted

    def config(self, **more: Any) -> CompressConfig:
        """edgeopt's defaults but for what was asked."""
        stated = {"epochs": self.asked.qat_epochs, "recovery_epochs": self.asked.recovery_epochs}
        stated = {key: self.epochs(value) for key, value in stated.items() if value is not None or self.asked.trial}
        return CompressConfig(**{**stated, **more})

    def add(self, key: str, title: str, right: Any, **more: Any) -> None:
        """A row: which test pictures were answered rightly."""
        self.record["rows"][key] = {"title": title, "top1": float(right.mean()), **packed(right), **more}
        print(f"{self.name}-{self.fold} {key}: {right.mean():.2%}", flush=True)

    def save(self) -> None:
        self.record |= {"environment": environment.record(), "calibration": load_calibration("default").count}
        self.record["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_json(self.kept, self.record)
        if not self.asked.trial:
            OUT.mkdir(exist_ok=True)
            (OUT / f"{self.name}-{self.fold}.json").write_text(json.dumps(self.record, indent=1) + "\n")


def deploy(fold: Fold, key: str, title: str, made: list[Variant], **more: Any) -> None:
    """Build the int8 variant among ``made`` for every target, and ask its engines about the test pictures."""
    variant = next(item for item in reversed(made) if item.record.get("scheme"))
    metrics = variant.record["metrics"]
    for target in TARGETS:
        api.build(fold.run, target, variants=[variant.name, fold.original.name], console=fold.console)
        engine = engines(fold.run)[f"{target}/{variant.name}"]
        pictures = fold.workspace.prepared("test", engine.preprocess)
        with engine.open() as session:
            right = is_right(evaluate(session, pictures, engine.preprocess).logits, pictures)
        fold.add(
            f"{key}-{target}",
            title,
            right,
            runtime=target,
            engine=engine.key,
            macs=metrics["macs"],
            val_top1=metrics["val_top1"],
            int8_share_macs=engine.record["fusion"]["int8_share_macs"],
            size_bytes=engine.record["size_bytes"],
            **more,
        )


def right_in_torch(fold: Fold, model: Any) -> Any:
    spec = fold.original.preprocess
    pictures = fold.workspace.prepared("test", spec)
    return is_right(logits(model, pictures, spec), pictures)


def is_right(answers: Any, pictures: Any) -> Any:
    """bool (N,) in the order of the test set, which every row shares."""
    return np.asarray(answers).argmax(axis=1) == np.asarray(pictures.labels)
