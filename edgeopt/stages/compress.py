"""Smaller variants of the trained model: channels pruned and recovered, then int8 by PTQ and distilled QAT."""

from __future__ import annotations

from collections.abc import Sequence

from edgeopt import environment
from edgeopt.config import CompressConfig, Target, load_calibration, load_target
from edgeopt.console import Console, Silent
from edgeopt.errors import ConfigError
from edgeopt.registry import load_backend
from edgeopt.run import Run
from edgeopt.schemes import SCHEMES
from edgeopt.stages.export import export
from edgeopt.stages.latency import pruned_to_latency, require_measurable, require_one_target, rival_of, rival_size
from edgeopt.stages.latency_elsewhere import export_candidates
from edgeopt.stages.latency_verdict import judged, judged_there
from edgeopt.stages.passes import Job
from edgeopt.stages.pruning import pruned
from edgeopt.stages.quantizing import quantized
from edgeopt.stages.teachers import find_teacher
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.workspace import open_workspace


def compress(
    run: Run,
    config: CompressConfig | None = None,
    *,
    targets: Sequence[str] = (),
    variant: str | None = None,
    data: str | None = None,
    force: bool = False,
    console: Console | None = None,
) -> list[Variant]:
    """Make the variants ``config`` asks for from ``variant`` (default: the original).

    What they learn from is that variant, or ``config.teacher``; see :func:`edgeopt.stages.teachers.find_teacher`.
    With ``config.latency`` pruning goes on until the measured engine of the one target meets it; the unpruned model
    at a smaller input of equal latency comes along as its rival, and each int8 variant's record then has ``latency``.
    ``config.latency_candidates`` exports what the one target has to time first, and makes no variant.
    ``targets`` decide which int8 schemes are made; without them: the one this machine's CPU runs exactly, in full, and
    s8a8w for TensorRT from its weights. All are exported. Raises ModelError, TrainingError, DataError, ConfigError.
    """
    console, config = console or Silent(), config or CompressConfig()
    if not config.int8 and not config.prunes:  # a latency implies int8
        raise ConfigError("nothing to compress", fix="ask for --int8, --prune F, or both")
    start = open_variant(run, variant or run.original())
    if start.architecture.scheme is not None:
        raise ConfigError(f"{start.name} is int8 already", fix="start from a float variant")
    teacher = find_teacher(run, config.teacher or start.name, distill=config.distill, console=console)
    if config.latency is not None:
        require_measurable(load_target(targets[0] if targets else "openvino"), targets, run)
    if config.latency_candidates:
        require_one_target(load_target(targets[0] if targets else "openvino"), targets)
    load_calibration(config.calibration)  # a misspelt name is said now, not after pruning
    workspace = open_workspace(run, data=data, console=console)
    profiles = [load_target(name) for name in targets]
    round_to = max((profile.round_to for profile in profiles), default=8)
    job = Job(workspace, config, start, teacher, tuple(targets), round_to, force, console)
    with run.lock():
        # First, for a model that cannot be exported is better told before it is trained.
        export(run, variants=[start.name], data=data, console=console)
        if config.latency is not None:
            return _to_latency(job, load_target(targets[0]), data)
        if config.latency_candidates:
            export_candidates(job, load_target(targets[0]), _one_scheme(job, load_target(targets[0])))
            return []
        made = []
        source = start
        if config.prunes:
            source = pruned(job)
            made.append(source)
        if config.int8:
            made += quantized(job, source, _schemes(config, targets))
        # With int8 on top, the pruned float model is a step on the way; `export --variant` exports it all the same.
        results = [item.name for item in made if item.record.get("scheme") or not config.int8]
        export(run, variants=results, data=data, console=console)
    return made


def _to_latency(job: Job, target: Target, data: str | None) -> list[Variant]:
    """The variant pruned until its engine meets the latency, and its rival; int8 of both, exported and measured."""
    scheme = _one_scheme(job, target)
    pruned_one = pruned_to_latency(job, target, scheme)
    size = rival_size(job, pruned_one)
    rival = rival_of(job, size) if size else None
    finals = [item for source in (pruned_one, rival) if source for item in quantized(job, source, (scheme,))]
    export(job.run, variants=[job.start.name, *(item.name for item in finals)], data=data, console=job.console)
    judge = judged if environment.matches(target.match) else judged_there
    return [pruned_one, *([rival] if rival else []), *judge(job, target, pruned_one, finals)]


def _one_scheme(job: Job, target: Target) -> str:
    scheme, *others = _schemes(job.config, job.targets)
    if others:
        raise ConfigError(
            f"a latency is that of one int8 scheme, not of {scheme} and {', '.join(others)}",
            fix=f"leave out --scheme: {target.name} takes {scheme}",
        )
    return scheme


def _schemes(config: CompressConfig, targets: Sequence[str]) -> tuple[str, ...]:
    """The schemes to make, those with unsigned activations first: they are trained in full."""
    wanted = list(config.schemes)
    for name in targets:
        profile = load_target(name)
        if profile.precision == "int8":
            wanted.append(profile.scheme or load_backend(profile.backend).schemes_on(profile)[0])
    if not wanted:
        wanted = ["u8a8w" if environment.has_int8_dot() else "u8a7w", "s8a8w"]
    return tuple(name for name in SCHEMES if name in wanted)
