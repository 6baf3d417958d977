"""Whether cuts make the int8 engine faster: measured before anything is trained, since weights change no latency."""

from __future__ import annotations

from typing import Any

from torch import nn

from edgeopt.bench.bed import UNPRUNED, Share
from edgeopt.compress.prune import History
from edgeopt.errors import ModelError
from edgeopt.stages.latency_networks import slicer_of
from edgeopt.stages.passes import Job
from edgeopt.stages.timing import bed_of, first_here

_SECONDS, _WIDTH = 6.0, 0.05  # it ends when the ratio is known to this; only which is faster is asked
_CUT = "pruned"


def share_after(job: Job, start: nn.Module, history: History) -> dict[str, Any] | None:
    """The int8 latency of ``start`` after the cuts of ``history``, as a share of its own: target, scheme, p50_ms,
    share_of_unpruned and its 95 % interval. None where no int8 engine is wanted, or none runs here.
    """
    found = first_here(job) if job.config.int8 else None
    if found is None:
        return None
    target, scheme = found
    with job.console.task("timing what is left") as progress, bed_of(job, target, scheme) as bed:
        slicer = slicer_of(job, start, scheme, bed.folder)
        engines = []
        for name, cuts in ((UNPRUNED, []), (_CUT, history)):
            path = bed.folder / f"{name}.onnx"
            slicer.write(cuts, path)
            engines.append(bed.build(name, path))
        result = bed.measure(engines, _SECONDS, width=_WIDTH, progress=progress)
    for failed, reason in result.failures.items():
        job.console.say(f"not timed: {failed}: {reason}")
        return None
    share = Share.of(result, _CUT)
    return {"target": target.name, "scheme": scheme, **share.to_json()}


def require_faster(job: Job, start: nn.Module, history: History) -> dict[str, Any] | None:
    """What :func:`share_after` found, said; raises ModelError when the engine is slower, or as slow, for certain."""
    found = share_after(job, start, history)
    if found is None:
        return None
    share, interval = found["share_of_unpruned"], found["share_of_unpruned_ci"]
    told = f"{share:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
    on = f"int8 on {found['target']}"
    if interval and interval[0] >= 1.0:
        raise ModelError(
            f"pruning did not lower the latency: {on} it takes {told} of the whole network's time",
            fix="ask for more: a larger --prune or --drop-blocks; or for a latency, --latency 0.8x; or leave it out",
        )
    unsure = "" if interval and interval[1] < 1.0 else "; whether it is faster cannot be told"
    job.console.say(f"{on} it takes {told} of the whole network's time{unsure}")
    return found
