"""A latency of another device: candidates are exported here, timed there, and its times come back in the run folder."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Any

from edgeopt.bench.bed import Share, Timing
from edgeopt.compress.latency.clocks import Elsewhere, candidates_of, shape_of
from edgeopt.compress.space import WidthSpace
from edgeopt.config import Target
from edgeopt.errors import ConfigError
from edgeopt.run import stage_key
from edgeopt.stages.latency_networks import slicer_of, smaller_sizes
from edgeopt.stages.passes import Job, inputs_of, training_recipe
from edgeopt.stages.pruning import channels_of, stated
from edgeopt.stages.training import TrainingPlan

VERSION = 2


def described(target: Target) -> dict[str, Any]:
    """What of a target decides how fast its engines are."""
    return target.model_dump(mode="json", exclude={"budget", "title", "sources", "status", "typed"})


def export_candidates(job: Job, target: Target, scheme: str) -> dict[str, Any]:
    """Write the int8 ONNX of every candidate for ``target`` to time; the record ``candidates.json``.

    In ``host/<start>/candidates-<target>/``: about two dozen widths, the whole network (``unpruned``) among them, and
    the whole network at smaller inputs. Weights are as they were before training: only their shapes count.
    """
    stage = job.run.stage(
        f"host/{job.start.name}",
        f"candidates-{target.name}",
        record="candidates.json",
        key=_key(job, target, scheme),
        force=job.force,
        outdated=lambda _: True,
    )
    if stage.done:
        record = stage.skipped(job.console)
    else:
        start = job.start.load()
        found = channels_of(job, start, TrainingPlan.for_recovery(job.config, **training_recipe(job)))
        space = WidthSpace(found.groups, tuple(found.costs))
        candidates = candidates_of(space, smaller_sizes(job))
        outputs = {}
        with tempfile.TemporaryDirectory(prefix="edgeopt-latency-") as folder, job.console.task("slicing") as progress:
            slicer = slicer_of(job, start, scheme, Path(folder))
            for done, (name, one) in enumerate(candidates.items()):
                outputs[name] = stage.folder / f"{name}.onnx"
                slicer.write(one.history, outputs[name], one.spec.input_shape if one.spec else None)
                progress(done + 1, len(candidates))
        record = stage.commit(
            outputs=outputs,
            stage="candidates",
            variant=job.start.name,
            target=target.name,
            scheme=scheme,
            profile=target.model_dump(mode="json", by_alias=True),
            layers=list(space.layers),
            groups=[{"name": name, "units": units} for name, units in shape_of(space)],
            candidates={
                name: {
                    "cuts": None if one.cuts is None else list(one.cuts),
                    "size": None if one.spec is None else list(one.spec.size),
                }
                for name, one in candidates.items()
            },
        )
    job.console.say(
        f"{len(record['candidates'])} candidates for {target.name}. On it, in a copy of the run folder: edgeopt bench "
        "--latency-candidates (from here: --on ssh://user@host); then, with the folder back: edgeopt compress --int8 "
        f"--latency 4ms --target {shlex.quote(job.targets[0])}"
    )
    return record


def times_of_candidates(job: Job, target: Target, scheme: str) -> dict[str, Any]:
    """What the device last measured of the candidates that are exported now; ConfigError when they are of others."""
    measured = [
        record
        for record in job.run.candidate_times().values()
        if record["target"] == target.name and record["variant"] == job.start.name
    ]
    fitting = [record for record in measured if record["candidates"] == _key(job, target, scheme)]
    if not fitting:
        raise ConfigError(
            f"the times that {target.name} measured are of other candidates: the model, the target, the scheme or what "
            "is left unpruned was another",
            fix=_again(job),
        )
    return max(fitting, key=lambda record: str(record["created"]))


def elsewhere(job: Job, times: dict[str, Any]) -> Elsewhere:
    """The device as who tells latencies."""
    record = job.run.candidates().get(f"{job.start.name}/candidates-{times['target']}")
    if record is None or record["key"] != times["candidates"]:
        raise ConfigError(
            f"the candidates whose times {times['target']} measured are not in the run any more",
            fix=_again(job),
        )
    spec, stated = job.start.preprocess, record["candidates"]
    machine = times["measured_on"]
    name = machine.get("board") or (machine.get("cpu") or {}).get("name") or times["target"]
    job.console.say(f"latencies are those that {name} measured on {times['created'][:10]}")
    return Elsewhere(
        groups=[(str(group["name"]), int(group["units"])) for group in record["groups"]],
        layers=tuple(record["layers"]),
        cuts={key: tuple(one["cuts"]) for key, one in stated.items() if one["cuts"] is not None},
        sizes={
            key: spec.model_copy(update={"size": (one["size"][0], one["size"][1])})
            for key, one in stated.items()
            if one["size"] is not None
        },
        timings={key: Timing(Share.from_json(one), one["layers"]) for key, one in times["engines"].items()},
    )


def _again(job: Job) -> str:
    target = shlex.quote(job.targets[0])
    return f"export and measure again: edgeopt compress --int8 --latency-candidates --target {target}"


def _key(job: Job, target: Target, scheme: str) -> str:
    inputs = {name: digest for name, digest in inputs_of(job, job.start).items() if name != "teacher"}
    config = {"target": described(target), "scheme": scheme, "round_to": job.round_to}
    cut = job.config.model_dump(include={"ignore", *stated(job, "layer_cap")})
    return stage_key(inputs=inputs, config={**config, **cut}, version=VERSION)
