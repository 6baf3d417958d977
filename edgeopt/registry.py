"""Tables ``name -> "module:Attr"``: listing them imports nothing, loading one imports only its module."""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeopt.errors import ConfigError, did_you_mean

#: Runtimes that build and run engines. ``pytorch`` lives in the host half and is listed as a name only.
BACKENDS = {
    "onnxruntime": "edgeopt.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "edgeopt.backends.openvino:OpenVinoBackend",
    "tensorrt": "edgeopt.backends.tensorrt:TensorRtBackend",
    "tensorrt_rtx": "edgeopt.backends.tensorrt_rtx:TensorRtRtxBackend",
    "pytorch": "edgeopt.torch_session:PyTorchBackend",
}

#: Losses of ``train.loss``; what else has a colon is the user's own ``module:attr``.
LOSSES = {
    "cross_entropy": "edgeopt.train.losses:CrossEntropyLoss",
    "weighted": "edgeopt.train.losses:WeightedCrossEntropyLoss",
    "focal": "edgeopt.train.losses:FocalLoss",
}


def table(kind: str, builtin: dict[str, str]) -> dict[str, str]:
    """``builtin`` with what installed packages add through the entry point group ``edgeopt.<kind>``."""
    return {**_added(kind, tuple(sys.path)), **builtin}


@lru_cache(maxsize=8)
def _added(kind: str, _path: tuple[str, ...]) -> dict[str, str]:
    """Reading the metadata of everything on the path takes 20 ms, and a verb looks backends up a dozen times."""
    return {point.name: point.value for point in entry_points(group=f"edgeopt.{kind}")}


def backends() -> dict[str, str]:
    """Every backend's name and where it is, built in and from entry points."""
    return table("backends", BACKENDS)


def losses() -> dict[str, str]:
    """Every loss's name and where it is, built in and from entry points."""
    return table("losses", LOSSES)


def load(reference: str) -> Any:
    """The object ``module:attr`` names. Only for references from edgeopt's own tables or the user's own recipe."""
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


def import_users_module(name: str) -> ModuleType:
    """The module of the user's own called ``name``; those in the current folder are found as by ``python -m``."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return import_module(name)
    finally:
        sys.path.remove(here)


def load_users_own(reference: str, *, kind: str) -> Any:
    """The callable ``module:attr`` names, where modules in the current folder are found as by ``python -m``.

    Raises ConfigError when it cannot be imported or is none.
    """
    module, _, attribute = reference.partition(":")
    try:
        value = getattr(import_users_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(
            f"cannot import {module} for the {kind} {reference}: {error}",
            fix=f"start edgeopt in the folder that holds {module}, or install it and what it imports",
        ) from error
    if not callable(value):
        raise ConfigError(f"{reference} is not a callable", fix=f"name a class or function of {module}")
    return value


def load_backend(name: str) -> Any:
    """The backend called ``name``, as an instance; raises ConfigError for an unknown name."""
    known = backends()
    if name not in known:
        raise ConfigError(
            f'unknown backend "{name}"{did_you_mean(name, known)}', fix=f"use one of {', '.join(sorted(known))}"
        )
    return load(known[name])()
