"""What a stage that made a variant hands back, and how a variant is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgeopt import models
from edgeopt.files import write_json
from edgeopt.models.architecture import Architecture
from edgeopt.models.macs import count_macs, count_parameters
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run, Stage
from edgeopt.train import checkpoint


@dataclass(frozen=True)
class Variant:
    """A committed variant of a run; ``skipped`` when it was made by an earlier call."""

    run: Run
    name: str
    record: Mapping[str, Any]
    skipped: bool

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"run": str(self.run.path), "variant": self.name, "skipped": self.skipped, **self.record}

    def summary(self) -> str:
        """One line for a person."""
        metrics = self.record["metrics"]
        words = f"{self.run.path}: {self.name}, val top-1 {metrics['val_top1']:.2%}"
        words += f", {metrics['parameters'] / 1e6:.2f} M parameters, {metrics['macs'] / 1e6:.0f} M MACs"
        if figures := self.record.get("cross_validation"):
            words += f"; {len(figures['fold_top1'])} folds: {figures['mean_top1']:.2%} held out"
            words += f" (standard deviation {100 * figures['spread_top1']:.2f} points)"
        if ladder := self.record.get("ladder"):
            words += f"; a drop of at most {ladder['max_drop_points']:g} points is {ladder['verdict']}"
            words += f" by {ladder['chosen']}"
        if latency := self.record.get("latency"):
            words += f"; {latency['asked']} is {latency['verdict']} with {latency['p50_ms']:.3g} ms"
            words += ", recommended" if latency["recommended"] else ""
        return words + (" (made before, unchanged)" if self.skipped else "")

    @property
    def missed(self) -> tuple[str, ...]:
        """The drop and the latency that were asked for and that it, the best that was made, is not within."""
        latency, ladder = self.record.get("latency") or {}, self.record.get("ladder") or {}
        too_slow = latency.get("verdict") == "missed" and latency["recommended"]
        found = [f"a latency of {latency['asked']}"] if too_slow else []
        if ladder.get("verdict") == "missed":
            found.append(f"a drop of at most {ladder['max_drop_points']:g} points")
        return tuple(found)

    @property
    def preprocess(self) -> PreprocessSpec:
        return PreprocessSpec.read(self.run.path / "host" / self.name / "preprocess.json")

    @property
    def architecture(self) -> Architecture:
        return Architecture.read(self.run.path / "host" / self.name / "architecture.json")

    def load(self) -> nn.Module:
        """The trained model, in evaluation mode; its weights' hash is checked first."""
        self.run.output(self.record, "model")
        own = self.run.path / "host" / self.name
        return models.load(own, allow_code=is_own(self.run))


def is_own(run: Run) -> bool:
    """Whether the run was made on this machine: only then does a ``module:attr`` model run its code."""
    from edgeopt import environment

    return run.info.get("host") == environment.host_id()


def open_variant(run: Run, name: str) -> Variant:
    """A committed variant by name; raises MissingStageError."""
    return Variant(run, name, run.variant(name), skipped=True)


def commit_variant(
    stage: Stage,
    model: nn.Module,
    architecture: Architecture,
    spec: PreprocessSpec,
    *,
    parent: str | None,
    stage_name: str,
    config: Mapping[str, Any],
    origin: Mapping[str, Any],
    inputs: Mapping[str, str],
    metrics: Mapping[str, Any],
    files: Mapping[str, Path] | None = None,
    **fields: Any,
) -> Variant:
    """Write the model, its architecture, preprocessing and metrics, then the record that makes the variant exist.

    ``files`` of the stage's folder are listed and hashed among its outputs.
    """
    models.save(model, architecture, stage.folder)
    write_json(stage.folder / "preprocess.json", spec.to_json())
    figures = {
        **metrics,
        "parameters": count_parameters(model),
        "macs": count_macs(model, spec.input_shape),
        "model_bytes": (stage.folder / "model.safetensors").stat().st_size,
    }
    write_json(stage.folder / "metrics.json", figures)
    outputs = {
        "model": stage.folder / "model.safetensors",
        "architecture": stage.folder / "architecture.json",
        "preprocess": stage.folder / "preprocess.json",
        "metrics": stage.folder / "metrics.json",
        **(files or {}),
    }
    record = stage.commit(
        outputs=outputs,
        stage=stage_name,
        parent=parent,
        scheme=architecture.scheme,
        config=dict(config),
        config_origin=dict(origin),
        inputs=dict(inputs),
        metrics=figures,
        **fields,
    )
    checkpoint.clear(stage.folder)  # nothing is left to resume, and devices need not carry it
    return Variant(stage.run, stage.name, record, skipped=False)
