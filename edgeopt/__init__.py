"""edgeopt: from a folder of labelled pictures to a small, fast classifier on a named edge device, with the evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.config import (
        AugmentConfig,
        Budget,
        CalibrationRecipe,
        CompressConfig,
        DataConfig,
        EnsembleConfig,
        ModelConfig,
        Recipe,
        Target,
        TrainConfig,
        TuneConfig,
        load_calibration,
        load_recipe,
        load_target,
    )
    from edgeopt.errors import EdgeoptError
    from edgeopt.preprocess import PreprocessSpec
    from edgeopt.run import Run

_WHERE = {
    "AugmentConfig": "config",
    "Budget": "config",
    "CalibrationRecipe": "config",
    "CompressConfig": "config",
    "DataConfig": "config",
    "EdgeoptError": "errors",
    "EnsembleConfig": "config",
    "ModelConfig": "config",
    "PreprocessSpec": "preprocess",
    "Recipe": "config",
    "Run": "run",
    "Target": "config",
    "TrainConfig": "config",
    "TuneConfig": "config",
    "load_calibration": "config",
    "load_recipe": "config",
    "load_target": "config",
}

__all__ = [
    "AugmentConfig",
    "Budget",
    "CalibrationRecipe",
    "CompressConfig",
    "DataConfig",
    "EdgeoptError",
    "EnsembleConfig",
    "ModelConfig",
    "PreprocessSpec",
    "Recipe",
    "Run",
    "Target",
    "TrainConfig",
    "TuneConfig",
    "load_calibration",
    "load_recipe",
    "load_target",
]


def __getattr__(name: str) -> Any:
    """Public names load their module on first use (PEP 562)."""
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"edgeopt.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
