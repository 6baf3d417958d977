"""Whether cuts make the int8 engine faster: measured before anything is trained, since weights change no latency."""

from __future__ import annotations

from typing import Any

from torch import nn

from edgeopt.bench.bed import UNPRUNED, Share
from edgeopt.compress.prune import History
from edgeopt.config import Target
from edgeopt.errors import EdgeoptError, ModelError
from edgeopt.stages.latency_networks import slicer_of
from edgeopt.stages.passes import Job
from edgeopt.stages.timing import all_here, bed_of

_SECONDS, _WIDTH = 6.0, 0.05  # it ends when the ratio is known to this; only which is faster is asked
_CUT = "pruned"


def require_faster(job: Job, start: nn.Module, history: History) -> dict[str, Any] | None:
    """The int8 latency of ``start`` after the cuts of ``history``, as a share of its own, said: target, scheme, p50_ms,
    share_of_unpruned and its 95 % interval. Of the targets that run here it is the first that is not slower or as slow
    for certain; where all are, and no target is elsewhere, ModelError is raised. None where no int8 engine is wanted,
    none runs here, or timing failed, which is said: it is no reason not to prune.
    """
    found, told = None, ""
    here = all_here(job) if job.config.int8 else []
    timed = 0
    for target, scheme in here:
        try:
            share = share_after(job, target, scheme, start, history)
        except EdgeoptError as error:
            job.console.say(f"not timed before training: {target.name}: {error.message}")
            continue
        timed += 1
        interval = share["share_of_unpruned_ci"]
        told = f"int8 on {target.name} it takes {share['share_of_unpruned']:.2f}" + (
            f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        )
        told += " of the whole network's time"
        found = share
        if not interval or interval[0] < 1.0:
            unsure = "" if interval and interval[1] < 1.0 else "; whether it is faster cannot be told"
            job.console.say(told + unsure)
            return found
        job.console.say(told)
    if timed and timed == max(len(job.targets), len(here)):
        raise ModelError(
            f"pruning did not lower the latency: {told}",
            fix="ask for more: a larger --prune or --drop-blocks; or for a latency, --latency 0.8x; or leave it out",
        )
    if found is not None:
        job.console.say("it is pruned all the same, for the targets that could not be timed here")
    return found


def share_after(job: Job, target: Target, scheme: str, start: nn.Module, history: History) -> dict[str, Any]:
    """As :func:`require_faster`, on one target; raises BackendError, or what quantizing and exporting raise."""
    with job.console.task("timing what is left") as progress, bed_of(job, target, scheme) as bed:
        slicer = slicer_of(job, start, scheme, bed.folder)
        engines = []
        for name, cuts in ((UNPRUNED, []), (_CUT, history)):
            path = bed.folder / f"{name}.onnx"
            slicer.write(cuts, path)
            engines.append(bed.build(name, path))
        result = bed.measure(engines, _SECONDS, width=_WIDTH, progress=progress)
    return {"target": target.name, "scheme": scheme, **Share.of(result, _CUT).to_json()}
