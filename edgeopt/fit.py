"""Whether this machine is the device of a target and has what it takes, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeopt import allotment, environment
from edgeopt.backends.base import Backend
from edgeopt.config import Target
from edgeopt.registry import load_backend


@dataclass(frozen=True)
class Fit:
    """``fits``: engines for the target run on this machine as on the device it describes; ``why`` it does or not."""

    fits: bool
    why: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As ``edgeopt targets --this --json`` prints it."""
        return {"fits": self.fits, "why": list(self.why)}


def fit(target: Target) -> Fit:
    """Compares ``match``, runtime, its device or provider, int8 scheme and threads with this machine."""
    backend: Backend = load_backend(target.backend)
    wrong = environment.misfits(target.match)
    found = backend.availability()
    if not found.ok:
        wrong.append(f"{target.backend} does not run here: {found.reason}")
    elif missing := backend.missing(target):
        wrong.append(missing)
    exact = backend.schemes_on(target)
    if target.precision == "int8" and target.scheme is not None and target.scheme not in exact:
        wrong.append(f"this machine does not compute {target.scheme} exactly, but {' and '.join(exact) or 'no int8'}")
    cores = allotment.usable_cores()
    if target.session.threads > cores:
        wrong.append(f"{target.session.threads} threads are stated, this machine has {cores} cores")
    if wrong:
        return Fit(False, tuple(wrong))
    stated = [f"{name} is {value}" for name, value in target.match.model_dump(exclude_none=True).items()]
    return Fit(True, (*(stated or ["it describes any machine"]), f"{target.backend} {found.version} runs here"))
