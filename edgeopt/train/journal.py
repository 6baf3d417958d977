"""The training log: one JSON object a line in ``log.jsonl``, and the same curves for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeopt.files import write_text


class Journal:
    """Appends to ``log.jsonl`` and ``tensorboard/`` in ``folder``.

    Epochs after ``keep_epochs`` are forgotten first; None: everything is, as for a training that starts.
    """

    def __init__(self, folder: Path, *, keep_epochs: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "log.jsonl"
        kept = [line for line in _lines(self._path) if keep_epochs is not None and _epoch(line) <= keep_epochs]
        write_text(self._path, "".join(f"{line}\n" for line in kept))
        first = 0 if keep_epochs is None else keep_epochs + 1
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(dict(record)) + "\n")

    def write_epoch(self, record: Mapping[str, Any], curves: Mapping[str, float]) -> None:
        """Append an epoch's line and its points on the curves; ``curves`` are more of these for TensorBoard alone."""
        self.write(record)
        for name, value in {**record, **curves}.items():
            if name != "epoch":
                self._board.add_scalar(name, value, record["epoch"])

    def write_picture(self, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        """Show uint8 (height, width, 3) in TensorBoard."""
        self._board.add_image(name, pixels, 0, dataformats="HWC")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.close()


class NoJournal:
    """Keeps nothing: for processes that do not lead."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def write_epoch(self, record: Mapping[str, Any], curves: Mapping[str, float]) -> None:
        """Nothing."""

    def write_picture(self, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        """Nothing."""

    def __enter__(self) -> NoJournal:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _epoch(line: str) -> float:
    """The epoch of a line: 0 for what comes before the first, infinity for a line cut off by a kill."""
    try:
        return float(json.loads(line).get("epoch", 0))
    except ValueError:
        return float("inf")
