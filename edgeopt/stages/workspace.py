"""A run with its pictures at hand: what every stage that trains or exports works on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt import environment
from edgeopt.config import CalibrationRecipe, DataConfig, validate
from edgeopt.console import Console, Silent
from edgeopt.data.cache import Shelf
from edgeopt.data.calibration import draw_calibration
from edgeopt.data.dataset import Dataset, Item
from edgeopt.data.manifest_source import is_manifest
from edgeopt.data.sets import write_samples, write_set
from edgeopt.data.split import draw
from edgeopt.data.torchvision_source import is_reference
from edgeopt.errors import DataError, RunError
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run
from edgeopt.sets import PictureSet, open_set

Features = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Workspace:
    """A run, its dataset with a root that is on this machine, and how the pictures are read."""

    run: Run
    dataset: Dataset
    data: DataConfig
    console: Console
    shelf: Shelf | None = None  # keeps decoded train pictures between trainings

    def prepared(self, name: str, spec: PreprocessSpec) -> PictureSet:
        """The set ``val`` or ``test`` as ``spec`` prepares it, written on first use; a capped test set is said."""
        items = self.dataset.of("val") if name == "val" else self._test_items()
        return self._set(name, items, spec)

    def is_prepared(self, name: str, spec: PreprocessSpec) -> bool:
        """Whether :meth:`prepared` has nothing to write."""
        return (self._sets(spec) / f"{name}.json").is_file()

    def calibration(
        self, recipe: CalibrationRecipe, spec: PreprocessSpec, features: Callable[[], Features | None] | None = None
    ) -> PictureSet:
        """The pictures that set the int8 ranges, drawn from train, written on first use.

        ``features`` gives a row for each train picture where a diverse draw needs them; None: thumbnails are compared.
        """
        name = calibration_name(recipe)
        if (self._sets(spec) / f"{name}.json").is_file():
            return open_set(self._sets(spec), name)
        if recipe.count < len(self.dataset.classes):
            recipe = recipe.model_copy(update={"count": len(self.dataset.classes)})
            self.console.say(f"calibration: {recipe.count} pictures, so that every class has one")
        wanted = recipe.selection == "diverse" and recipe.count < len(self.dataset.of("train"))
        rows = features() if wanted and features is not None else None
        items = draw_calibration(self.dataset, recipe, rows, max_pixels=self.data.max_pixels)
        if len(items) < recipe.count:
            self.console.say(f"calibration: train has {len(items)} pictures, fewer than the {recipe.count} asked for")
        return self._set(name, items, spec)

    def samples(self) -> None:
        """32 encoded test pictures, for end-to-end timing on a device."""
        folder = self.run.data / "samples"
        if not (folder / "samples.json").is_file():
            write_samples(self.dataset, self.dataset.of("test"), folder)

    def _test_items(self) -> tuple[Item, ...]:
        items = self.dataset.of("test")
        if len(items) <= self.data.max_test:
            return items
        self.console.say(f"test: {self.data.max_test} of {len(items)} pictures, drawn in class proportions")
        return tuple(draw(items, self.data.max_test, seed=self.data.seed))

    def _sets(self, spec: PreprocessSpec) -> Path:
        return self.run.data / "sets" / spec.key

    def _set(self, name: str, items: tuple[Item, ...], spec: PreprocessSpec) -> PictureSet:
        folder = self._sets(spec)
        if not (folder / f"{name}.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with self.console.task(f"preparing the {name} set") as progress:
                write_set(self.dataset, items, name, spec, folder, self.data.max_pixels, progress)
        return open_set(folder, name)


def calibration_name(recipe: CalibrationRecipe) -> str:
    """``calib`` for the default draw, ``calib-<hash>`` for any other; how ranges are read from it does not matter."""
    draw_of = recipe.model_dump(include={"count", "selection", "seed"})
    if draw_of == CalibrationRecipe(schema=1).model_dump(include={"count", "selection", "seed"}):
        return "calib"
    return "calib-" + hashlib.sha256(json.dumps(draw_of, sort_keys=True).encode()).hexdigest()[:8]


def open_workspace(run: Run, *, data: str | None = None, console: Console | None = None) -> Workspace:
    """The run's dataset, its pictures found again.

    ``data`` says where they are now. Without it the place recorded when the run was made is used, but only on the
    machine that made it: a run folder from elsewhere must not choose what is read here. Raises RunError, DataError.
    """
    run.require_own()
    dataset = Dataset.read(run.data)
    config = validate(DataConfig, run.info.get("data", {}), where=f"{run.path}/run.json")
    if data is None and run.info.get("host") != environment.host_id():
        raise RunError(
            f"{run.path} was made on another machine, so its pictures must be pointed at",
            fix="edgeopt export --data FOLDER (compress takes --data as well)",
        )
    if data is not None and not is_reference(data) and is_manifest(Path(data)):
        data = str(Path(data).parent)  # what a manifest names lies in its folder
    root = data or dataset.root
    if data is not None:
        dataset = dataset.at(data if is_reference(data) else str(Path(data).absolute()))
    if not is_reference(root) and not Path(root).is_dir():
        raise DataError(
            f"the pictures of {run.path} are not at {root} any more", fix="say where they are: --data FOLDER"
        )
    return Workspace(run, dataset, config, console or Silent())
