"""Where every training begins: the pictures are read, and the run that holds them is opened or made."""

from __future__ import annotations

from pathlib import Path

from edgeopt.config import DataConfig
from edgeopt.console import Console
from edgeopt.data.dataset import Dataset
from edgeopt.data.ingest import ingest
from edgeopt.data.manifest_source import is_manifest
from edgeopt.data.torchvision_source import is_reference
from edgeopt.errors import RunError
from edgeopt.run import Run, check_name
from edgeopt.stages.workspace import Workspace, open_workspace


def data_config(data: DataConfig | str | Path) -> DataConfig:
    """``data`` itself, or that of a path."""
    return data if isinstance(data, DataConfig) else DataConfig(path=str(data))


def open_pictures(data: DataConfig, run: Path | None, console: Console, *, wait_seconds: float = 0.0) -> Workspace:
    """Read the pictures and open the run that holds them, made on first use.

    ``wait_seconds`` is how long to wait for others that hold the run. Raises DataError, ConfigError, RunError.
    """
    with console.task("reading pictures") as progress:
        dataset = ingest(data, progress=progress)
    _say_dataset(dataset, console)
    path = run or _default_path(data.path, dataset.fingerprint)
    opened = Run.create(
        path,
        data_root=dataset.root,
        data=data.model_dump(mode="json"),
        fingerprint=dataset.fingerprint,
        wait_seconds=wait_seconds,
    )
    with opened.lock(wait_seconds):
        if not (opened.data / "split.json").is_file():
            dataset.write(opened.data)
        elif _issues(Dataset.read(opened.data)) != _issues(dataset):  # the pictures are the same, what is beside is not
            dataset.write_issues(opened.data)
    console.say(f"run: {opened.path}")
    return open_workspace(opened, data=dataset.root, console=console)


def _default_path(source: str, fingerprint: str) -> Path:
    """``runs/<name of the data>``, or the first ``-2``, ``-3``... that holds this dataset or nothing."""
    path = Path(source).absolute()
    if is_reference(source):
        name = source.split("@")[0].split(":", 1)[1]
    else:
        name = path.stem if is_manifest(path) else path.name
    name = check_name(name.lower() or "run")
    for number in range(1, 1000):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if Run.is_free(path):
            return path
        if (path / "run.json").is_file() and Run.open(path).info["fingerprint"] == fingerprint:
            return path
    raise RunError(f"there are too many runs called {name}", fix="give --run FOLDER")


def _say_dataset(dataset: Dataset, console: Console) -> None:
    counts = dataset.counts()
    console.say(
        f"{len(dataset.items)} pictures of {len(dataset.classes)} classes: "
        f"{counts['train']} train, {counts['val']} val, {counts['test']} test"
    )
    if dataset.set_aside:
        path, reason = dataset.set_aside[0]
        console.say(f"set aside: {len(dataset.set_aside)} files (first: {path}: {reason}); all are in data/issues.json")
    if others := dict(dataset.ignored).get("not a picture"):
        console.say(f"passed over: {others} files whose names are not of pictures")
    for note in dataset.notes:
        console.say(f"note: {note}")


def _issues(dataset: Dataset) -> tuple[object, ...]:
    return dataset.set_aside, dataset.ignored, dataset.notes
