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
    trust_engine: bool = False,
    console: Console | None = None,
) -> tuple[list[Prediction], list[str]]:
    """Predictions for ``images`` (files, folders, globs), and a line for each picture that could not be read.

    ``engine`` is ``target/variant``; the int8 engine built last when None. ``trust_engine`` opens one that was built
    on another machine as well.
    """
    console = console or Silent()
    chosen = pick_engine(run, engine, trust_engine=trust_engine)
    console.say(f"engine: {chosen.key}")
    for key, error in run.damaged_engines().items():
        console.say(f"left out: {key} ({error.message})")
    with chosen.open() as session:
        return classify(session, images, chosen.preprocess, labels(run), top=top, temperature=chosen.temperature)
