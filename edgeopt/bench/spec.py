"""What to measure: one engine, how it is opened, and which pictures it sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeopt.config import Target, validate


@dataclass(frozen=True)
class EngineSpec:
    """One engine. ``key`` is its folder under ``device/``: ``target/variant``.

    ``threads`` 0 means every core this process may use; ``bench`` gives all engines the same number. ``pictures`` (a
    prepared set's folder) and ``preprocess`` (a ``preprocess.json``) are for variants whose input differs from the
    rest; None takes those given to ``bench``. The batch is the target's.
    """

    key: str
    backend: str
    engine: Path
    target: Target
    precision: str
    threads: int = 0
    pictures: Path | None = None
    preprocess: Path | None = None

    def completed(self, *, pictures: Path, preprocess: Path, threads: int) -> EngineSpec:
        """This spec with absolute paths and nothing left open."""
        return replace(
            self,
            engine=self.engine.absolute(),
            threads=self.threads or threads,
            pictures=(self.pictures or pictures).absolute(),
            preprocess=(self.preprocess or preprocess).absolute(),
        )

    def to_json(self) -> dict[str, Any]:
        """As sent to the worker."""
        return {
            "key": self.key,
            "backend": self.backend,
            "engine": str(self.engine),
            "target": self.target.model_dump(mode="json", by_alias=True),
            "precision": self.precision,
            "threads": self.threads,
            "pictures": str(self.pictures),
            "preprocess": str(self.preprocess),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EngineSpec:
        """The spec a worker received."""
        paths = {name: Path(values[name]) for name in ("engine", "pictures", "preprocess")}
        target = validate(Target, values["target"], where="target")
        return cls(**{**values, **paths, "target": target})
