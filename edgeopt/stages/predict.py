"""Classify pictures with one engine of a run."""

from __future__ import annotations

from collections.abc import Sequence

from edgeopt.console import Console, Silent
from edgeopt.predict import Prediction
from edgeopt.predict import predict as classify
from edgeopt.run import Run
from edgeopt.stages.engines import labels, pick_engine


def predict(
    run: Run,
    images: Sequence[str],
    *,
    engine: str | None = None,
    top: int = 5,
    console: Console | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Predictions for ``images`` (files, folders, globs), and a line for each picture that could not be read.

    ``engine`` is ``target/variant``; the int8 engine built last when None.
    """
    console = console or Silent()
    chosen = pick_engine(run, engine)
    console.say(f"engine: {chosen.key}")
    with chosen.open() as session:
        return classify(session, images, chosen.preprocess, labels(run), top=top)
