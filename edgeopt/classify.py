"""Pictures that files, folders and patterns name, and any engine's answers for them.

Shipped to devices as it is (:mod:`edgeopt.packaging`), so it stands on numpy, Pillow and its neighbours alone.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeopt.arrays import Float, softmax
from edgeopt.errors import REPORT, BackendError, DataError
from edgeopt.files import printable
from edgeopt.picture_files import as_utf8, contents, pillow_quiet
from edgeopt.pixels import Float32, Preprocessing, UInt8, load_picture

Spec = TypeVar("Spec", bound=Preprocessing)

NOT_FINITE = f'set precision = "fp32" in the target and build again; if that is not finite either, {REPORT}'


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture: ``top`` is (label, probability 0-1), best first."""

    path: str
    top: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """The best class."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """Of the best class, 0-1."""
        return self.top[0][1]

    def to_text(self) -> str:
        """One line: the path and every label of ``top`` with its probability."""
        return f"{self.path}: " + ", ".join(f"{label} ({probability:.1%})" for label, probability in self.top)

    def to_json(self) -> dict[str, Any]:
        """As ``edgeopt predict --json`` prints it."""
        return {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "top": [[label, probability] for label, probability in self.top],
        }


def classify(
    answer: Callable[[Mapping[Spec, UInt8]], Float],
    paths: Sequence[str],
    specs: Sequence[Spec],
    classes: Sequence[str],
    *,
    top: int = 5,
    batch: int = 8,
    temperature: float = 1.0,
) -> tuple[list[Prediction], list[str]]:
    """As :func:`predict`, from any function of pictures uint8 (N, height, width, 3) by preprocessing to logits.

    Every one of ``specs``, which can be keys of a mapping, gets the same pictures, as it prepares them.
    """
    if top < 1 or batch < 1:
        raise DataError(f"top and batch must be at least 1, got {top} and {batch}", fix="ask for --top 1 or more")
    files, failures = expand(paths)
    if not files and not failures:
        raise DataError(
            f"no picture in {', '.join(map(str, paths)) or 'an empty list'}", fix="name a picture or a folder"
        )
    found: list[Prediction] = []
    for names, pictures in _batches(files, specs, batch, failures):
        logits = checked_logits(answer(pictures), len(names))
        if logits.shape[1] != len(classes):
            raise DataError(
                f"the engine has {logits.shape[1]} classes, the run names {len(classes)}",
                fix="get the run folder again",
            )
        for name, row in zip(names, softmax(logits / temperature), strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            found.append(Prediction(as_utf8(name), tuple((classes[int(index)], float(row[index])) for index in best)))
    return found, failures


def expand(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Picture files that ``paths`` name, each once, and a line for each name that is nothing.

    An existing file or folder is taken by its name, whatever characters it has; only else is a name a pattern.
    In folders, at any depth, files with a picture's extension count, hidden ones and links to folders do not; what
    should be a picture and is no file has its line. Folders and patterns are sorted.
    """
    files: dict[str, None] = {}
    failures: list[str] = []
    for path in map(str, paths):
        if os.path.isdir(path):  # noqa: PTH112 - Path("a ") and Path("-x") are fine, Path("./x") would lose the "./" typed
            _add_folder(path, files, failures)
        elif os.path.exists(path):  # noqa: PTH110 - as above
            files[path] = None
        else:
            matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - patterns may be absolute
            if not matches:
                failures.append(f"{printable(path)}: does not exist")
            for match in matches:
                if os.path.isdir(match):  # noqa: PTH112 - as above
                    _add_folder(match, files, failures)
                else:
                    files[match] = None
    return list(files), failures


def rate(pictures: int, seconds: float) -> str:
    """The line that says how fast pictures were answered, from the first file opened to the last answer."""
    return f"{pictures} pictures in {seconds:.2f} s: {pictures / seconds:.1f} pictures/s, decoding included"


def with_list(names: Sequence[str], lines: Iterable[str]) -> list[str]:
    """``names`` with ``lines``, as of standard input, in place of a ``-``; empty ones name nothing."""
    return [
        name for one in names for name in ((line.rstrip("\r\n") for line in lines) if one == "-" else [one]) if name
    ]


def _add_folder(folder: str, files: dict[str, None], failures: list[str]) -> None:
    found = contents(folder)
    files.update((str(Path(path)), None) for path in found.files)
    failures += [f"{printable(path)}: {reason}" for path, reason in found.problems]


def _batches(
    files: Sequence[str], specs: Sequence[Spec], size: int, failures: list[str]
) -> Iterator[tuple[list[str], dict[Spec, UInt8]]]:
    """(names, uint8 (<= size, height, width, 3) by spec) of those readable; others' reasons go to ``failures``."""
    names: list[str] = []
    pictures: dict[Spec, list[UInt8]] = {spec: [] for spec in specs}
    for file in files:
        try:
            with pillow_quiet():
                loaded = {spec: load_picture(Path(file), spec) for spec in pictures}
        except DataError as error:
            failures.append(error.message)
            continue
        names.append(file)
        for spec, picture in loaded.items():
            pictures[spec].append(picture)
        if len(names) == size:
            yield names, {spec: np.stack(some) for spec, some in pictures.items()}
            names, pictures = [], {spec: [] for spec in pictures}
    if names:
        yield names, {spec: np.stack(some) for spec, some in pictures.items()}


def checked_logits(logits: Float32, pictures: int) -> Float32:
    """``logits`` when they are finite and (pictures, classes); raises BackendError saying what they are instead."""
    if logits.ndim != 2 or len(logits) != pictures:
        raise BackendError(
            f"the engine answered {logits.shape} for {pictures} pictures, not ({pictures}, classes)",
            fix="build it from a model that gives one row of logits for each picture",
        )
    if not np.isfinite(logits).all():
        raise BackendError(
            "the engine answered numbers that are not finite (NaN or infinity)",
            fix=NOT_FINITE,
        )
    return logits
