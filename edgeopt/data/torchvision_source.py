"""``torchvision:NAME[@FOLDER]``: datasets of torchvision that are already on disk; nothing is ever downloaded."""

from __future__ import annotations

import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from edgeopt.errors import DataError, did_you_mean
from edgeopt.preprocess import to_rgb

PREFIX = "torchvision:"
#: The names torchvision's datasets give their parts, by the split they are for us.
_PART_NAMES = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}


def is_reference(path: str) -> bool:
    """Whether ``path`` names a torchvision dataset."""
    return path.startswith(PREFIX)


def normalized(reference: str) -> str:
    """``torchvision:NAME@/absolute/folder``; the folder is ``./data`` unless stated."""
    name, _, folder = reference.removeprefix(PREFIX).partition("@")
    return f"{PREFIX}{name}@{Path(folder or 'data').expanduser().resolve()}"


def parts(reference: str) -> dict[str, Any]:
    """The dataset's own parts, opened: ``{"train": ..., "test": ...}``, or ``{"all": ...}`` when it has none.

    Raises DataError when the name is unknown or nothing usable is on disk.
    """
    parameters = inspect.signature(_class(reference)).parameters
    if "train" in parameters:
        return {"train": _open(reference, "train"), "test": _open(reference, "test")}
    if "split" not in parameters:
        return {"all": _open(reference, "all")}
    found = {"train": _open(reference, "train")}
    for part in ("val", "test"):
        try:
            found[part] = _open(reference, part)
        except DataError:
            continue  # many datasets have no such part: it is carved from train
    return found


def class_names(part: Any) -> list[str] | None:
    """What the dataset calls its classes, by label; None when it does not say."""
    names = getattr(part, "classes", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    return [name if isinstance(name, str) else ", ".join(map(str, name)) for name in names]


def picture(reference: str, path: str) -> Image.Image:
    """The picture called ``path`` (``train/000012``); raises DataError."""
    part, _, index = path.partition("/")
    if not index.isdigit():
        raise DataError(
            f"{reference} has no picture {path}", fix="use the version of the dataset that the run was made with"
        )
    image, _ = read(_open(reference, part), int(index), f"{reference}/{path}")
    return image


def read(part: Any, index: int, name: str) -> tuple[Image.Image, int]:
    """RGB picture and label of one sample; raises DataError when it is not a picture with one class."""
    try:
        image, label = part[index]
    # A dataset's own code may raise anything on a damaged file; the type is recorded.
    except Exception as error:  # noqa: BLE001 - reading a picture, as in preprocess.open_picture
        raise DataError(
            f"{name}: cannot be read as a picture ({type(error).__name__}: {error})", fix="get the dataset again"
        ) from None
    if not isinstance(image, Image.Image):
        raise DataError(f"{name} is a {type(image).__name__}, not a picture", fix="use an image dataset")
    try:
        return to_rgb(image), int(label)
    except (TypeError, ValueError):
        raise DataError(
            f"{name} has the target {label!r}, not one class", fix="use a single-label classification dataset"
        ) from None


def _class(reference: str) -> Any:
    import torchvision.datasets

    name = reference.removeprefix(PREFIX).partition("@")[0]
    if name not in torchvision.datasets.__all__:
        close = did_you_mean(name, torchvision.datasets.__all__)
        raise DataError(
            f'torchvision has no dataset "{name}"{close}', fix="check the name, or give a folder of pictures"
        )
    return getattr(torchvision.datasets, name)


@lru_cache(maxsize=8)
def _open(reference: str, part: str) -> Any:
    """One part of the dataset, opened from disk."""
    factory = _class(reference)
    name, _, folder = normalized(reference).removeprefix(PREFIX).partition("@")
    accepted = inspect.signature(factory).parameters
    common: dict[str, Any] = {"root": folder} if "root" in accepted else {}
    if "download" in accepted:
        common["download"] = False
    if "train" in accepted:
        attempts: list[dict[str, Any]] = [{"train": part == "train"}]
    elif "split" in accepted:
        attempts = [{"split": name} for name in _PART_NAMES.get(part, ())]
    else:
        attempts = [{}]
    problem: Exception | None = None
    for arguments in attempts:
        try:
            return factory(**common, **arguments)
        except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
            problem = problem or error
    raise DataError(
        f"torchvision:{name} ({part}) cannot be read from {folder}: {problem}",
        fix=f"put the dataset there, or say where it is: torchvision:{name}@/its/folder (edgeopt downloads nothing)",
    )
