"""How each variant was trained, read from the run: curves by epoch and the learning rate's range test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeopt import records
from edgeopt.errors import EdgeoptError
from edgeopt.files import read_text
from edgeopt.report.model import LrTest, Training
from edgeopt.run import Run

_LOG_BYTES = 64 * 2**20


def trainings(run: Run) -> tuple[Training, ...]:
    """Of every variant that was trained here, in the order they were made."""
    found = []
    for name, record in run.variants().items():
        folder = run.path / "host" / name
        log, test = folder / "log.jsonl", folder / "lr_range.json"
        if not log.is_file():
            continue
        try:
            epochs = _epochs(log)
            for later in sorted(folder.glob("round-*/log.jsonl"), key=_round):  # of a recovery that went on
                epochs += tuple((len(epochs) + epoch, loss, top1) for epoch, loss, top1 in _epochs(later))
            tested = _tested(records.read(records.LrRangeRecord, test)) if test.is_file() else None
        except EdgeoptError as error:
            found.append(Training(name, damaged=error.message))
            continue
        except ValidationError:
            found.append(Training(name, damaged=f"{run.relative(log)} is damaged"))
            continue
        best = ((record.get("metrics") or {}).get("training") or {}).get("best_epoch")
        if epochs:
            found.append(Training(name, epochs, best if isinstance(best, int) else None, tested))
    return tuple(found)


def _round(log: Path) -> int:
    number = log.parent.name.partition("-")[2]
    return int(number) if number.isdecimal() else 0


def _epochs(log: Path) -> tuple[tuple[float, float, float], ...]:
    """(epoch, train loss, val top-1) of every line that ends an epoch."""
    text = read_text(log, limit=_LOG_BYTES)
    lines = [records.LogLine.model_validate_json(line) for line in text.splitlines() if line]
    return tuple(
        (line.epoch, line.train_loss, line.val_top1)
        for line in lines
        if line.epoch is not None and line.train_loss is not None and line.val_top1 is not None
    )


def _tested(record: dict[str, Any]) -> LrTest:
    return LrTest(record["lr"], tuple(zip(record["rates"], record["smoothed"], strict=True)))
