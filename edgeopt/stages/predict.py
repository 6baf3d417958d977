"""Classify pictures with one engine of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence

from edgeopt.classify import rate
from edgeopt.console import Console, Silent
from edgeopt.errors import ConfigError
from edgeopt.predict import Prediction
from edgeopt.predict import predict as classify
from edgeopt.run import Run
from edgeopt.stages.engines import labels, pick_engine, require_torch


def predict(
    run: Run,
    images: Sequence[str],
    *,
    engine: str | None = None,
    variant: str | None = None,
    top: int = 5,
    trust_engine: bool = False,
    console: Console | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Predictions for ``images`` (files, folders, globs), and a line for each picture that could not be read.

    ``engine`` is ``target/variant``; the int8 engine built last when None. ``variant`` instead names a variant, run in
    PyTorch, or an ensemble. ``trust_engine`` opens one that was built
    on another machine as well.
    """
    console = console or Silent()
    if variant is not None:
        if engine is not None:
            raise ConfigError("an engine and a variant are named, and one answers", fix="leave one of them out")
        require_torch()
        from edgeopt.stages.voters import predict_with

        return predict_with(run, variant, images, top=top)
    chosen = pick_engine(run, engine, trust_engine=trust_engine)
    console.say(f"engine: {chosen.key}")
    for key, error in run.damaged_engines().items():
        console.say(f"left out: {key} ({error.message})")
    with chosen.open() as session:
        started = time.perf_counter()
        found, failures = classify(
            session,
            images,
            chosen.preprocess,
            labels(run),
            top=top,
            batch=chosen.target.batch,  # what the engine was built and, on OpenVINO and TensorRT, compiled for
            temperature=chosen.temperature,
        )
        console.say(rate(len(found), time.perf_counter() - started))
    return found, failures
