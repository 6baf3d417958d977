"""The verbs of the command line as functions; a module of its own, since packages of edgeopt bear the same names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.pipeline import demo, run_recipe
    from edgeopt.remote import run_on
    from edgeopt.stages.bench import bench, evaluate
    from edgeopt.stages.build import build
    from edgeopt.stages.candidates import bench_candidates
    from edgeopt.stages.check import check
    from edgeopt.stages.compress import compress
    from edgeopt.stages.ensemble import ensemble
    from edgeopt.stages.export import export
    from edgeopt.stages.finetune import adopt, augment_preview, finetune
    from edgeopt.stages.foreign import import_onnx
    from edgeopt.stages.package import package
    from edgeopt.stages.predict import predict
    from edgeopt.stages.report import compare, report
    from edgeopt.stages.tune import tune

_WHERE = {
    "adopt": "stages.finetune",
    "augment_preview": "stages.finetune",
    "bench": "stages.bench",
    "bench_candidates": "stages.candidates",
    "build": "stages.build",
    "check": "stages.check",
    "compare": "stages.report",
    "compress": "stages.compress",
    "demo": "pipeline",
    "ensemble": "stages.ensemble",
    "evaluate": "stages.bench",
    "export": "stages.export",
    "finetune": "stages.finetune",
    "import_onnx": "stages.foreign",
    "package": "stages.package",
    "predict": "stages.predict",
    "report": "stages.report",
    "run_on": "remote",
    "run_recipe": "pipeline",
    "tune": "stages.tune",
}

__all__ = [
    "adopt",
    "augment_preview",
    "bench",
    "bench_candidates",
    "build",
    "check",
    "compare",
    "compress",
    "demo",
    "ensemble",
    "evaluate",
    "export",
    "finetune",
    "import_onnx",
    "package",
    "predict",
    "report",
    "run_on",
    "run_recipe",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Public names load their module on first use (PEP 562)."""
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"edgeopt.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'edgeopt.api' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
