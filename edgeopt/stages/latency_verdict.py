"""What the engines of variants pruned to a latency measure in the end: met, missed or undecided, and which is best."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from edgeopt.bench import BenchResult
from edgeopt.bench.bed import VERDICT_PART, verdict_seconds
from edgeopt.bench.result import bounds
from edgeopt.config import Target
from edgeopt.latency_goal import LatencyGoal
from edgeopt.metrics import Interval, seconds_to_decide
from edgeopt.run import Stage, stage_key
from edgeopt.stages.latency import REFERENCE, goal_of
from edgeopt.stages.passes import Job, model_hash
from edgeopt.stages.timing import bed_of
from edgeopt.stages.variants import Variant

VERSION = 2
_REFERENCE = "unpruned"


def judged(job: Job, target: Target, pruned: Variant, finals: Sequence[Variant]) -> list[Variant]:
    """``finals`` (the int8 variant of the pruned model, then the rival's) with what their engines measured.

    All are timed against the unpruned int8 engine. Each gets the verdict met, missed or undecided; the one with the
    better val top-1 among those that do not miss it is recommended. Written to ``host/<variant>/latency/verdict.json``.
    """
    stages = _stages(job, target, finals)
    if all(stage.done for stage in stages):
        return [_with(item, stage.skipped(job.console)) for item, stage in zip(finals, stages, strict=True)]
    result = _measure(job, target, pruned, finals)
    rows = [_row(item, result, goal_of(job)) for item in finals]
    best = _best(rows)
    made = []
    for index, (item, stage, row) in enumerate(zip(finals, stages, rows, strict=True)):
        record = stage.commit(
            outputs={},
            stage="latency",
            asked=job.config.latency,
            target=target.name,
            **row,
            recommended=index == best,
            rival=finals[1 - index].name if len(finals) == 2 else None,
        )
        made.append(_with(item, record))
        job.console.say(_sentence(item.name, job.config.latency or "", record))
    return made


def _best(rows: Sequence[Mapping[str, Any]]) -> int:
    """Which of ``rows`` is recommended: the first with the best val top-1 of those that do not miss the latency."""
    return max(
        range(len(rows)), key=lambda index: (rows[index]["verdict"] != "missed", rows[index]["val_top1"], -index)
    )


def judged_there(job: Job, target: Target, pruned: Variant, finals: Sequence[Variant]) -> list[Variant]:
    """``finals`` as they are, since only the device can measure them; the better is named, and what to type there."""
    search = pruned.record["latency_search"]
    limit_ms = search["goal"]["limit_share"] * search["candidates"][0]["p50_ms"]
    best = max(finals, key=lambda item: float(item.record["metrics"]["val_top1"]))
    named, place = (shlex.quote(name) for name in (job.targets[0], target.name))
    job.console.say(
        f"{best.name} has the best val top-1, {best.record['metrics']['val_top1']:.2%}; {job.config.latency} is a "
        f"prediction until {place} measures it: edgeopt build --target {named}, then edgeopt bench --target {named} "
        f"--budget max_p50_ms={limit_ms:.4g}"
    )
    return list(finals)


def _stages(job: Job, target: Target, finals: Sequence[Variant]) -> list[Stage]:
    key = stage_key(
        inputs={item.name: model_hash(item) for item in finals},
        # More seconds measure again, and train nothing: that is how what is undecided gets decided.
        config={
            "latency": job.config.latency,
            "target": target.model_dump(mode="json", exclude={"typed"}),
            "seconds": verdict_seconds(job.config.timing_seconds),
        },
        version=VERSION,
    )
    return [
        job.run.stage(
            f"host/{item.name}", "latency", record="verdict.json", key=key, force=job.force, outdated=lambda _: True
        )
        for item in finals
    ]


def _measure(job: Job, target: Target, pruned: Variant, finals: Sequence[Variant]) -> BenchResult:
    """The engines of what was exported, interleaved with the unpruned one that the search left."""
    scheme, exports = str(finals[0].architecture.scheme), job.run.exports()
    with bed_of(job, target, scheme) as bed, job.console.task("measuring what was made") as progress:
        reference = bed.build(_REFERENCE, job.run.output(pruned.record, REFERENCE))
        built = [bed.build(item.name, job.run.output(exports[item.name], "onnx"), item.preprocess) for item in finals]
        return bed.judge([reference, *built], job.config.timing_seconds, progress=progress)


def _row(item: Variant, result: BenchResult, goal: LatencyGoal) -> dict[str, Any]:
    """What was measured of one variant, and whether its interval is under the limit, over it, or around it."""
    p50, ratio = result.measured(item.name).p50, result.ratio(item.name, _REFERENCE)
    share = Interval(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
    judged_by, limit = (share, goal.share) if goal.share is not None else (p50, goal.ms)
    assert limit is not None
    verdict = "met" if judged_by.high <= limit else "missed" if judged_by.low > limit else "undecided"
    return {
        "verdict": verdict,
        "seconds": result.seconds,
        "seconds_to_decide": seconds_to_decide(judged_by, limit, result.seconds) if verdict == "undecided" else None,
        "p50_ms": p50.value,
        "p50_ci_ms": bounds(p50),
        "unpruned_p50_ms": result.engines[_REFERENCE].p50.value,
        "share_of_unpruned": share.value,
        "share_of_unpruned_ci": bounds(share),
        "val_top1": item.record["metrics"]["val_top1"],
    }


def _sentence(name: str, asked: str, row: Mapping[str, Any]) -> str:
    line = (
        f"{name}: {row['p50_ms']:.3g} ms, {row['share_of_unpruned']:.0%} of the unpruned int8 engine's; "
        f"{asked} is {row['verdict']}, val top-1 {row['val_top1']:.2%}"
        + (", recommended" if row["recommended"] else "")
    )
    if row["verdict"] != "undecided":
        return line
    if row["seconds_to_decide"] is None:
        return f"{line}; it is at the limit, or was measured for too short a time"
    needed = ceil(row["seconds_to_decide"])
    return f"{line}; about {needed} s of measuring would decide: --set timing_seconds={VERDICT_PART * needed}"


def _with(item: Variant, verdict: Mapping[str, Any]) -> Variant:
    fields = ("asked", "target", "verdict", "seconds_to_decide", "p50_ms", "share_of_unpruned", "recommended", "rival")
    return replace(item, record={**item.record, "latency": {name: verdict.get(name) for name in fields}})
