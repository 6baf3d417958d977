"""What every tool starts from: one float model, trained once, and the same pictures, prepared the same way.

``work/run`` is edgeopt's run with the float model; ``work/inputs`` what recipes read, ``inputs.json`` written last:
``float.onnx`` and ``float/`` (the model as ONNX, input ``input`` (N, 3, height, width), and as edgeopt reads it into
torch), ``calib.npy`` (the pictures edgeopt calibrates with), ``train.npy`` and ``val.npy``, float32 (N, 3, height,
width), normalized, and their ``*_labels.npy``, int64 (N,).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from emoji_folds import FOLDS, write_manifest

from edgeopt import DataConfig, ModelConfig, Run, TrainConfig, api
from edgeopt.config import CalibrationRecipe, Recipe
from edgeopt.console import Console
from edgeopt.data.digits import write_digits
from edgeopt.data.sets import StreamedSet
from edgeopt.files import read_json, sha256, write_json
from edgeopt.pipeline import demo_recipe
from edgeopt.preprocess import PreprocessSpec
from edgeopt.stages.workspace import Workspace, open_workspace

_BATCH = 32


@dataclass(frozen=True)
class Case:
    """A dataset and fold. ``folds`` is how many there are in all; ``trial`` takes a tiny model and few pictures."""

    data: str
    fold: int = 0
    emoji: Path | None = None
    trial: bool = False

    @property
    def name(self) -> str:
        return f"{self.data}-{self.fold}" + ("-trial" if self.trial else "")

    @property
    def folds(self) -> int:
        return FOLDS if self.data == "emoji" else 1

    @property
    def setting(self) -> dict[str, str]:
        """What edgeopt's recipes find in the environment: the demo's for digits, its defaults for emoji."""
        demo = demo_recipe(Path("digits"), ()).compress
        if self.trial:  # of the tiny model's channels no third can be cut in steps of 8
            return {"SETTING": "--epochs 1", "PRUNE": "0.365", "PRUNE_SETTING": "--recovery-epochs 1"}
        found = {"SETTING": "", "PRUNE": str(demo.prune), "PRUNE_SETTING": ""}
        if self.data == "digits":
            found["SETTING"] = f"--epochs {demo.epochs}"
            found["PRUNE_SETTING"] = f"--recovery-epochs {demo.recovery_epochs} --recovery-lr {demo.recovery_lr}"
        return found

    def recipe(self, work: Path) -> Recipe:
        """How the float model is trained; writes the pictures into ``work`` first."""
        if self.data == "digits":
            pictures = write_digits(work / "digits", limit=400 if self.trial else None)
            recipe = demo_recipe(pictures, ())
        else:
            assert self.emoji is not None
            if not (manifest := work / "emoji" / "emoji.csv").is_file():
                shutil.copytree(self.emoji, work / "emoji", dirs_exist_ok=True)
                write_manifest(manifest, self.fold, most=200 if self.trial else None)
            recipe = Recipe(
                data=DataConfig(path=str(manifest), image_size=128),
                model=ModelConfig(name="tf_efficientnet_lite0"),
                train=TrainConfig(epochs=12),
            )
        return self._tiny(recipe) if self.trial else recipe

    @staticmethod
    def _tiny(recipe: Recipe) -> Recipe:
        train = recipe.train.model_copy(update={"epochs": 20, "precision": "fp32", "memory_format": "contiguous"})
        return recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"image_size": 32}),
                "model": ModelConfig(name="test_resnet", pretrained=False),
                "train": train,
            }
        )


def prepare(case: Case, work: Path, given: Path | None, console: Console) -> dict[str, Any]:
    """Train or copy the float model into ``work/run``, write ``work/inputs``; returns ``inputs.json``.

    What is there already is left alone. ``given`` is a run folder whose original is taken instead of training one.
    """
    run_path, folder = work / "run", work / "inputs"
    if (folder / "inputs.json").is_file():
        return read_json(folder / "inputs.json")
    if given is not None:
        run = copy_float(Run.open(given), run_path)
    else:
        recipe = case.recipe(work)
        run = api.finetune(
            recipe.data, recipe.model, recipe.train, augment=recipe.augment, run=run_path, console=console
        ).run
    name = run.original()
    api.export(run, variants=[name], console=console)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copyfile(run.output(run.exports()[name], "onnx"), folder / "float.onnx")
    shutil.copytree(run.path / "host" / name, folder / "float", ignore=shutil.ignore_patterns("export", "tensorboard"))
    workspace, spec = open_workspace(run, console=console), PreprocessSpec.read(folder / "float" / "preprocess.json")
    calibration = workspace.calibration(CalibrationRecipe(schema=1), spec)
    np.save(folder / "calib.npy", np.concatenate(list(calibration.batches(spec, _BATCH))))
    for split in ("train", "val"):
        _write_split(workspace, split, spec, folder)
    record = {
        "run": run_path.name,
        "variant": name,
        "flip": bool(run.variant(name)["config"]["train"]["flip"]),
        "train_config": run.variant(name)["config"]["train"],
        "float_onnx_sha256": sha256(folder / "float.onnx"),
        "calibration_sha256": sha256(folder / "calib.npy"),
    }
    write_json(folder / "inputs.json", record)
    return record


def _write_split(workspace: Workspace, split: str, spec: PreprocessSpec, folder: Path) -> None:
    items = workspace.dataset.of(split)
    pictures = list(StreamedSet(workspace.dataset, items).batches(spec, _BATCH))
    np.save(folder / f"{split}.npy", np.concatenate(pictures))
    np.save(folder / f"{split}_labels.npy", np.array([item.label for item in items], np.int64))


def copy_float(run: Run, destination: Path) -> Run:
    """A run with the data and the float original of ``run`` and nothing made from it."""
    name = run.original()
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    shutil.copyfile(run.path / "run.json", destination / "run.json")
    shutil.copytree(run.data, destination / "data")
    shutil.copytree(run.path / "host" / name, destination / "host" / name)
    return Run.open(destination)
