"""Smaller variants of the trained model: channels pruned and recovered, then int8 by PTQ and distilled QAT."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from edgeopt import environment
from edgeopt.config import CompressConfig, Target, load_calibration, load_target
from edgeopt.console import Console, Silent
from edgeopt.errors import ConfigError
from edgeopt.registry import load_backend
from edgeopt.run import Run
from edgeopt.schemes import SCHEMES
from edgeopt.stages.build_plan import float_precisions
from edgeopt.stages.export import export
from edgeopt.stages.latency import pruned_to_latency, require_measurable, require_one_target, rival_of, rival_size
from edgeopt.stages.latency_elsewhere import export_candidates
from edgeopt.stages.latency_verdict import judged, judged_there
from edgeopt.stages.passes import Job
from edgeopt.stages.pruning import pruned
from edgeopt.stages.quantizing import quantized
from edgeopt.stages.recovery import epochs_of
from edgeopt.stages.teachers import find_teacher
from edgeopt.stages.training import NO_MEMORY
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.workspace import open_workspace
from edgeopt.train.clock import Clock
from edgeopt.train.memory import memory_told
from edgeopt.training_tables import seconds_of


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
    s8a8w for TensorRT from its weights. All are exported. With ``config.fp16`` or ``bf16``, which need no training, the
    float variant is given, pruned or as it is, and what to type for its engines is said. ``config.time`` bounds the
    call: its ladders share what pruning leaves of it. Raises ModelError, TrainingError, DataError, ConfigError.
    """
    console, config = console or Silent(), config or CompressConfig()
    clock = Clock(None if config.time is None else seconds_of(config.time))
    if not (config.int8 or config.prunes or config.half):  # a latency implies int8
        raise ConfigError("nothing to compress", fix="ask for --int8, --prune F, or both")
    run.require_own()
    start = open_variant(run, variant or run.original())
    if start.architecture.scheme is not None:
        raise ConfigError(f"{start.name} is int8 already", fix="start from a float variant")
    require_possible(config, targets, [run])
    teacher = find_teacher(run, config.teacher or start.name, distill=config.distill, console=console)
    workspace = open_workspace(run, data=data, console=console)
    profiles = [load_target(name) for name in targets]
    round_to = config.round_to or max((profile.round_to for profile in profiles), default=8)
    job = Job(workspace, config, start, teacher, tuple(targets), round_to, force, console, clock)
    # In what trains nothing as well: gradients for importance, fitting layers, ranges, what each layer costs in int8.
    with run.lock(), memory_told("compressing", fix=NO_MEMORY):
        # First, for a model that cannot be exported is better told before it is trained.
        export(run, variants=[start.name], data=data, console=console)
        if config.latency is not None:
            return _to_latency(job, load_target(targets[0]), data)
        if config.latency_candidates:
            export_candidates(job, load_target(targets[0]), _one_scheme(config, targets))
            return []
        made = []
        source = start
        if config.prunes:
            source = pruned(job)
            made.append(source)
        if config.int8:
            made += quantized(job, source, _schemes(config, targets))
        # With int8 on top, the pruned float model is a step on the way; `export --variant` exports it all the same.
        results = [item.name for item in made or [start] if item.record.get("scheme") or not config.int8]
        export(run, variants=results, data=data, console=console)
    if config.half:
        _say_half(source, config, targets, console)
    return made or [start]


def require_possible(config: CompressConfig, targets: Sequence[str], runs: Sequence[Run]) -> None:
    """That ``config`` can be had for ``targets``: what can be told before anything is made, in one of ``runs``.

    Raises ConfigError, MissingBackendError.
    """
    load_calibration(config.calibration)
    _require_half(config, targets)
    target = load_target(targets[0] if targets else "openvino")
    if config.latency is not None:
        require_measurable(target, targets, runs)
    if config.latency_candidates:
        require_one_target(target, targets)
    if config.latency is not None or config.latency_candidates:
        _one_scheme(config, targets)


def _require_half(config: CompressConfig, targets: Sequence[str]) -> None:
    """That of the ``targets``, where any are named, one has engines in each precision of 16 bits that is wanted."""
    built = {name: float_precisions(load_target(name)) for name in targets if config.half}
    for precision in config.half:
        if built and not any(precision in found for found in built.values()):
            instead = "; ".join(f"{name}: {', '.join(found)}" for name, found in built.items())
            raise ConfigError(
                f"no target has float engines in {precision} on this machine ({instead})",
                fix="name one whose runtime computes in it, as openvino on a CPU with AMX and tensorrt do, or a target "
                f'file of your own with precision = "{precision}"',
            )


def _say_half(variant: Variant, config: CompressConfig, targets: Sequence[str], console: Console) -> None:
    """What to type for engines of 16 bits: they are built of the float variant as it is."""
    names = " ".join(f"--target {shlex.quote(name)}" for name in targets) or "--target T"
    wanted = " and ".join(config.half)
    console.say(
        f"{variant.name} is exported; {wanted} needs no training: edgeopt build {names} --variant {variant.name} "
        "builds it so where the target computes in that precision"
    )


def _to_latency(job: Job, target: Target, data: str | None) -> list[Variant]:
    """The variant pruned until its engine meets the latency, and its rival; int8 of both, exported and measured."""
    scheme = _one_scheme(job.config, job.targets)
    pruned_one = pruned_to_latency(job, target, scheme)
    size = rival_size(job, pruned_one)
    rival = rival_of(job, size, epochs=epochs_of(pruned_one)) if size else None
    finals = [*quantized(job, pruned_one, (scheme,), later=1 if rival else 0)]
    finals += quantized(job, rival, (scheme,)) if rival else ()
    export(job.run, variants=[job.start.name, *(item.name for item in finals)], data=data, console=job.console)
    judge = judged if environment.matches(target.match) else judged_there
    return [pruned_one, *([rival] if rival else []), *judge(job, target, pruned_one, finals)]


def _one_scheme(config: CompressConfig, targets: Sequence[str]) -> str:
    scheme, *others = _schemes(config, targets)
    if others:
        raise ConfigError(
            f"a latency is that of one int8 scheme, not of {scheme} and {', '.join(others)}",
            fix=f"leave out --scheme: {load_target(targets[0]).name} takes {scheme}",
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
