"""On a device: timing the candidates that `compress --latency-candidates` exported for it, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeopt import environment
from edgeopt.bench.bed import temporary_bed
from edgeopt.config import Target, load_target, validate
from edgeopt.console import Console, Silent
from edgeopt.errors import BackendError, MissingStageError
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import load_backend
from edgeopt.run import Run, stage_key
from edgeopt.stages.build_plan import target_folder

VERSION = 1


def bench_candidates(
    run: Run, *, targets: Sequence[str] = (), seconds: float = 60.0, console: Console | None = None
) -> dict[str, dict[str, Any]]:
    """Build and time, interleaved, what was exported for this device; the records ``times.json`` by their folders.

    ``targets`` restricts them; ``seconds`` are for all candidates of a target together. Median milliseconds, shares of
    the unpruned engine with their intervals, the layers' shares by the runtime's profiler where it has one, and this
    machine. Measured before and unchanged, they are taken as they are. Raises MissingStageError when nothing was
    exported and BackendError when this machine is not the target.
    """
    console = console or Silent()
    with run.lock():
        chosen = _chosen(run, targets, console)
        made = [_timed(run, record, profile, seconds, console) for record, profile in chosen]
    return {f"{one['target']}/{one['name']}": one for one in made}


def _chosen(run: Run, targets: Sequence[str], console: Console) -> list[tuple[dict[str, Any], Target]]:
    known = list(run.candidates().values())
    names = {load_target(target).name for target in targets}
    wanted = [record for record in known if not names or record["target"] in names]
    if not wanted:
        raise MissingStageError(
            f"{run.path} has no candidates{' of ' + ', '.join(sorted(names)) if names else ''}",
            fix="where the model was trained: edgeopt compress --int8 --latency-candidates --target TARGET",
        )
    profiles = [(one, validate(Target, one["profile"], where=f"{one['name']}/candidates.json")) for one in wanted]
    wrong = {profile.name: environment.misfits(profile.match) for _, profile in profiles}
    for name, reasons in wrong.items():
        if reasons:
            console.say(f"not measured here: the candidates of {name} ({'; '.join(reasons)})")
    here = [(record, profile) for record, profile in profiles if not wrong[profile.name]]
    if not here:
        name, reasons = next(iter(wrong.items()))
        raise BackendError(
            f"this machine is not {name}: {'; '.join(reasons)}",
            fix="copy the run folder to the device and type it there, or from here: --on ssh://user@host",
        )
    return here


def _timed(run: Run, record: dict[str, Any], target: Target, seconds: float, console: Console) -> dict[str, Any]:
    backend = load_backend(target.backend)
    backend.require(to_build=True)
    variant = str(record["variant"])
    key = stage_key(
        inputs={"candidates": str(record["key"]), "machine": environment.machine_id()},
        config={"seconds": seconds},
        version=VERSION,
    )
    stage = run.stage(
        target_folder(run, target.name),
        f"candidates-{variant}",
        record="times.json",
        key=key,
        outdated=lambda _: True,
    )
    if stage.done:
        return stage.skipped(console)
    spec = PreprocessSpec.read(run.output(run.variant(variant), "preprocess"))
    sizes = {name: one["size"] and (one["size"][0], one["size"][1]) for name, one in record["candidates"].items()}
    with temporary_bed(target, str(record["scheme"]), spec, console) as bed:
        engines = {}
        with console.task(f"building {len(sizes)} candidates of {target.name}") as progress:
            for done, (name, size) in enumerate(sizes.items()):
                own = spec.model_copy(update={"size": size}) if size else spec
                engines[name] = bed.build(name, run.output(record, name), own)
                progress(done + 1, len(sizes))
        widths = [name for name, size in sizes.items() if size is None]
        with console.task(f"timing {len(sizes)} candidates of {target.name}") as progress:
            found = bed.timings(engines, seconds, layers=record["layers"], profiled=widths, progress=progress)
    return stage.commit(
        outputs={},
        stage="candidates",
        target=target.name,
        target_folder=stage.folder.parent.name,
        variant=variant,
        candidates=record["key"],
        backend_version=backend.availability().version,
        engines={name: {**one.share.to_json(), "layers": dict(one.layers)} for name, one in found.items()},
        measured_on=environment.record(),
    )
