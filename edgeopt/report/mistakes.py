"""The worst mistakes of an engine with their pictures, read from the run: what the page and nothing else shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt import records
from edgeopt.errors import EdgeoptError
from edgeopt.files import printable, read_npy
from edgeopt.preprocess import PreprocessSpec
from edgeopt.report.engine_row import EngineRow, Mistake
from edgeopt.report.thumbnails import heat, thumbnail
from edgeopt.run import Run
from edgeopt.sets import PictureSet, open_set


def mistakes(run: Run, row: EngineRow, labels: tuple[str, ...]) -> tuple[Mistake, ...]:
    """Those of ``row``; without pictures where the run does not carry its test set."""
    path = run.path / "device" / row.key / "accuracy.json"
    if not path.is_file() or not labels:
        return ()
    listed = records.read(records.AccuracyRecord, path).get("mistakes") or []
    pictures, maps = test_pictures(run, row.variant), _maps(run, row.variant)
    return tuple(_mistake(one, pictures, maps, labels) for one in listed)


def _mistake(
    one: dict[str, Any], pictures: PictureSet | None, maps: dict[Any, Any], labels: tuple[str, ...]
) -> Mistake:
    index, answer = int(one["index"]), int(one["answer"])
    known = pictures is not None and index < len(pictures)
    evidence = maps.get((index, answer))
    return Mistake(
        path=printable(pictures.paths[index]) if pictures is not None and known else f"test picture {index}",
        truth=labels[int(one["truth"])],
        answer=labels[answer],
        probability=float(one["probability"]),
        picture=thumbnail(pictures.pictures[index]) if pictures is not None and known else "",
        evidence=heat(pictures.pictures[index], evidence)
        if pictures is not None and known and evidence is not None
        else "",
    )


def test_pictures(run: Run, variant: str) -> PictureSet | None:
    """The variant's prepared test set; None when this copy of the run has none, or a damaged one."""
    try:
        spec = PreprocessSpec.read(run.path / "host" / variant / "preprocess.json")
        return open_set(run.data / "sets" / spec.key, "test")
    except EdgeoptError:
        return None


def _maps(run: Run, variant: str) -> dict[tuple[int, int], Any]:
    """Grad-CAM maps of the variant's PyTorch model, by picture and answer."""
    folders = [path.parent for path in sorted(run.path.glob(f"device/pytorch*/{variant}/gradcam.json"))]
    for folder in folders:
        try:
            return _read_maps(folder)
        except EdgeoptError:
            continue  # a picture is shown without it
    return {}


def _read_maps(folder: Path) -> dict[tuple[int, int], Any]:
    stated = records.read(records.GradCamRecord, folder / "gradcam.json")["pictures"]
    maps = read_npy(folder / "gradcam.npy", "|u1")
    if maps.ndim != 3 or len(maps) != len(stated):
        return {}
    return {(int(one["index"]), int(one["answer"])): maps[place] for place, one in enumerate(stated)}
