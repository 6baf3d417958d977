"""Build engines for a target from exported ONNX, audit what they run in int8, and check that they answer as trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgeopt import environment
from edgeopt.backends.audit import layer_of
from edgeopt.backends.base import Backend, BuildRequest, BuildResult
from edgeopt.backends.bisection import first_difference
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.config import Target, load_target
from edgeopt.console import Console, Silent
from edgeopt.errors import (
    BackendError,
    EdgeoptError,
    LoweringError,
    MissingStageError,
    ParityError,
    RunError,
    raise_first,
)
from edgeopt.files import read_npy, write_json
from edgeopt.metrics import Parity, float_parity, int8_parity
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import load_backend
from edgeopt.run import Run, Stage, stage_key
from edgeopt.schemes import get_scheme
from edgeopt.sets import open_set
from edgeopt.stages.build_plan import Planned, exported, mixed_variants, plan, source_onnx, target_folder
from edgeopt.stages.built import Built as Built
from edgeopt.stages.built import misjudged

VERSION = 5  # of what a build leaves; a change makes every build stale
_PARITY_BATCH = 16
#: What :func:`build` does when it is not told.
_ASKED = MappingProxyType(
    {"variants": (), "strict": False, "float_layers": (), "embed_preprocessing": False, "force": False}
)
#: What a target says that no engine depends on: edited, the engine that is there stays.
_NOT_OF_THE_ENGINE = {"budget", "title", "sources", "status", "match", "min_int8_share_macs", "round_to", "typed"}


def build(
    run: Run,
    target: str,
    *,
    variants: Sequence[str] = (),
    strict: bool = False,
    float_layers: Sequence[str] = (),
    embed_preprocessing: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> list[Built]:
    """Build every engine of ``run`` that ``target`` (a name or a TOML file) wants, with the float ones to compare with.

    ``variants`` restricts the int8 ones. ``strict`` raises for int8 engines of fewer MACs in int8 than the
    target's ``min_int8_share_macs`` (or, where MACs are not known, compute layers), but for those that are float by
    request. ``float_layers`` names layers of the int8 variants, as ``fusion.json`` does, or modules, to leave in float:
    built are variants made for it without training (``...-mixed``). ``embed_preprocessing`` builds
    engines of another name (``...-embedded``) that take uint8 pictures (N, height, width, 3), resized, and normalize
    these themselves. A float engine that int8 is only compared with and that fails is named in its record's ``reason``
    or ``parity`` and does not count as a failure. Raises MissingStageError when no variant has a scheme the target
    runs, MissingBackendError, and, when the other engines are built, BackendError, LoweringError, ParityError and
    RunError, the first of those that there are, with the others in its ``others``.
    """
    built, failed = _attempt(
        run,
        target,
        variants=variants,
        strict=strict,
        float_layers=float_layers,
        embed_preprocessing=embed_preprocessing,
        force=force,
        console=console or Silent(),
    )
    raise_first(failed)
    return built


def build_each(
    run: Run, targets: Sequence[str], *, console: Console | None = None, **how: Any
) -> tuple[list[Built], list[EdgeoptError]]:
    """:func:`build` for every one of ``targets``; what was built, and the errors of what was not."""
    built: list[Built] = []
    failed: list[EdgeoptError] = []
    for target in targets:
        try:
            made, errors = _attempt(run, target, **{**_ASKED, **how}, console=console or Silent())
        except (BackendError, LoweringError, MissingStageError, ParityError) as error:  # of this target, not the others
            failed.append(error)
        else:
            built += made
            failed += errors
    return built, failed


def _attempt(
    run: Run,
    target: str,
    *,
    variants: Sequence[str],
    strict: bool,
    float_layers: Sequence[str],
    embed_preprocessing: bool,
    force: bool,
    console: Console,
) -> tuple[list[Built], list[EdgeoptError]]:
    """What :func:`build` builds, and what goes wrong with single engines; raises what goes wrong before them."""
    profile = load_target(target)
    backend: Backend = load_backend(profile.backend)
    backend.require(to_build=True)
    if embed_preprocessing:
        backend.require_embedding()
    for name in run.variants():
        if run.stale(name) and name not in variants:
            console.say(f"left out: {name}, whose parent was made again since; the same compress makes it again")
    if float_layers:
        variants = mixed_variants(run, profile, backend, float_layers, variants, console)
    planned = plan(run, profile, backend, variants)
    if embed_preprocessing:
        planned = [replace(item, name=f"{item.name}-embedded", embed=True) for item in planned]
    every = [item.variant for item in planned]
    planned = exported(run, planned, needed=every if strict else (run.original(), *variants), console=console)
    built: list[Built] = []
    failed: list[EdgeoptError] = []
    baselines = _baselines(planned, variants) if not strict else frozenset()
    with run.lock():
        for item in planned:
            try:
                built.append(_build_one(run, profile, backend, item, force=force, console=console))
            except (BackendError, LoweringError, ParityError) as error:  # of this engine, not the others
                if item.name in baselines:
                    built.append(_left_out(profile, backend, item, error))
                else:
                    failed.append(error)
            except RunError as error:  # a damaged file of this variant, which is to be mended: no baseline goes without
                failed.append(error)
    failed += misjudged([item for item in built if item.name not in baselines], strict=strict)
    return built, failed


def _baselines(planned: Sequence[Planned], variants: Collection[str]) -> frozenset[str]:
    """Engines that nobody asked for but to compare int8 with: they fail alone."""
    if not any(item.scheme for item in planned):
        return frozenset()
    return frozenset(item.name for item in planned if not item.scheme and item.variant not in variants)


def _left_out(target: Target, backend: Backend, item: Planned, error: EdgeoptError) -> Built:
    """Of a baseline that cannot be built: what says so. It is no record in the run, and is tried again next time."""
    record = {
        "target": target.name,
        "variant": item.variant,
        "backend": backend.name,
        "precision": item.precision,
        "scheme": None,
        "profile": target.model_dump(mode="json", by_alias=True),
        "engine": None,
        "left_out": True,
        "reason": f"{error.message}; {error.fix}" if error.fix else error.message,
    }
    return Built(target.name, item.name, record, skipped=False)


def _build_one(run: Run, target: Target, backend: Backend, item: Planned, *, force: bool, console: Console) -> Built:
    onnx, export = source_onnx(run, backend, item.variant, item.precision)
    folder = target_folder(run, target.name)
    runtime = backend.availability().version if backend.version_bound else ""
    key = stage_key(
        inputs={
            "onnx": _stated_hash(export, onnx, run),
            "machine": environment.machine_id(),
            **({"runtime": runtime} if runtime else {}),
        },
        config={**target.model_dump(mode="json", exclude=_NOT_OF_THE_ENGINE), **item.config()},
        version=VERSION,
    )

    def outdated(record: Mapping[str, Any]) -> bool:
        made_of = {"onnx_sha256": _stated_hash(export, onnx, run), "version": VERSION, "runtime": runtime}
        return any(record.get(name) != value for name, value in made_of.items() if value)

    stage = run.stage(folder, item.name, record="build.json", key=key, force=force, outdated=outdated)
    if stage.done:
        return Built(target.name, item.name, _of_the_target(stage, target, stage.skipped(console)), skipped=True)
    spec = PreprocessSpec.read(run.output(run.variant(item.variant), "preprocess"))
    request = BuildRequest(
        onnx=onnx,
        folder=stage.folder,
        target=target,
        precision=item.precision,
        scheme=get_scheme(item.scheme) if item.scheme else None,
        input_shape=spec.input_shape,
        embed=spec if item.embed else None,
    )
    with console.task(f"building {target.name}/{item.name}"):
        result = _requested(backend.build(request), run.variant(item.variant), request.onnx)
        parity = _parity(run, backend, target, item, result, stage.folder, spec, export)
        parted = _parted(run, backend, target, item, onnx, spec, export) if parity and not parity.ok else ""
    record = _commit(stage, target, item, backend, result, parity, export, parted, runtime)
    return Built(target.name, stage.name, record, skipped=False)


def _of_the_target(stage: Stage, target: Target, record: dict[str, Any]) -> dict[str, Any]:
    """``record`` of an engine made before, brought up to what the target says now of budget, device and shares."""
    now = {"profile": _profile(target), "fits_this_machine": environment.matches(target.match)}
    if {name: record.get(name) for name in now} != now:
        record = {**record, **now}
        write_json(stage.record_path, record)
    return record


def _profile(target: Target) -> dict[str, Any]:
    return target.model_dump(mode="json", by_alias=True)


def _requested(result: BuildResult, record: Mapping[str, Any], onnx: Path) -> BuildResult:
    """``result`` with the layers named that are float because somebody asked for it: here, or of compress."""
    wanted = [*(record.get("float_layers") or ()), *((record.get("config") or {}).get("ignore") or ())]
    if result.fusion is None or not wanted:
        return result
    # OpenVINO calls a layer in float whose bias it added after what comes out of it.
    wanted += [output for node in read_onnx(onnx).nodes if layer_of(node.name, wanted) for output in node.outputs]
    found = tuple(
        name
        for name in result.fusion.float_layers
        if layer_of(name, wanted) or any(part.startswith(f"{one}.") for part in name.split(",") for one in wanted)
    )
    return replace(result, fusion=replace(result.fusion, float_by_request=found))


def _stated_hash(export: dict[str, Any], onnx: Path, run: Run) -> str:
    stated = [run.stated(export, name) for name in export["outputs"]]
    return next(digest for path, digest in stated if path == onnx)


def _parity(
    run: Run,
    backend: Backend,
    target: Target,
    item: Planned,
    result: BuildResult,
    folder: Path,
    spec: PreprocessSpec,
    export: dict[str, Any],
) -> Parity | None:
    """The engine's answers on calibration pictures against the trained model's; None when there is no engine here."""
    if result.engine is None or not result.runs_here:
        return None
    reference = read_npy(run.output(export, "logits"), "<f4")
    calibration = open_set(run.resolve(str(export["calibration_folder"])), str(export["calibration_set"]))
    answers: list[Any] = []
    with backend.open(folder / result.engine, target, precision=item.precision) as session:
        for pictures in calibration.pieces(_PARITY_BATCH):
            answers.append(session.infer(session.prepared(pictures, spec)))
            if sum(map(len, answers)) >= len(reference):
                break
    logits = np.concatenate(answers)[: len(reference)]
    if item.precision == "fp32":
        return float_parity(reference, logits)
    return int8_parity(
        reference, logits, noise_floor=_noise_floor(export, item.precision, backend.float_rest_on(target))
    )


def _noise_floor(export: dict[str, Any], precision: str, rest: str = "fp32") -> float:
    """What ``precision`` alone makes of the answers, as the export measured it; 0 where it did not.

    ``rest`` is the precision of what an int8 engine leaves in float.
    """
    floors = {"int8": export.get("noise_floor"), **(export.get("half_noise") or {})}
    return max(float(floors.get(name) or 0.0) for name in ((precision, rest) if precision == "int8" else (precision,)))


def _parted(
    run: Run, backend: Backend, target: Target, item: Planned, onnx: Path, spec: PreprocessSpec, export: dict[str, Any]
) -> str:
    """Words on where the engine of ``onnx`` and what was trained part, for the error."""
    calibration = open_set(run.resolve(str(export["calibration_folder"])), str(export["calibration_set"]))
    try:
        pictures = next(calibration.batches(spec, _PARITY_BATCH))
        layer = first_difference(backend, onnx, target, item.precision, pictures)
    except BackendError as error:
        return f"where they part is not known: {error.message}"
    if layer is None:
        return "every layer computes what the ONNX says, so that it is the ONNX that differs"
    return f"they part first at {layer}"


def _commit(
    stage: Stage,
    target: Target,
    item: Planned,
    backend: Backend,
    result: BuildResult,
    parity: Parity | None,
    export: dict[str, Any],
    parted: str,
    runtime: str,
) -> dict[str, Any]:
    if result.fusion is not None:
        write_json(stage.folder / "fusion.json", result.fusion.to_json())
    if result.layer_times is not None:
        write_json(stage.folder / "layer_times.json", result.layer_times.to_json())
    kept = [path for path in sorted(stage.folder.rglob("*")) if path.is_file() and path.name != "pending.json"]
    return stage.commit(
        outputs={path.relative_to(stage.folder).as_posix(): path for path in kept},
        stage="build",
        version=VERSION,
        target=target.name,
        target_folder=stage.folder.parent.name,
        profile=_profile(target),
        backend=backend.name,
        backend_version=backend.availability().version,
        runtime=runtime,
        variant=item.variant,
        precision=item.precision,
        scheme=item.scheme,
        embedded_preprocessing=item.embed,
        engine=result.engine,
        size_bytes=sum((stage.folder / name).stat().st_size for name in result.files) if result.engine else None,
        runs_here=result.runs_here,
        reason=result.reason,
        device_command=result.device_command,
        fits_this_machine=environment.matches(target.match),
        onnx_sha256=_stated_hash(export, source_onnx(stage.run, backend, item.variant, item.precision)[0], stage.run),
        fusion=result.fusion.to_json() if result.fusion else None,
        parity={**parity.to_json(), **({"parted": parted} if parted else {})} if parity else None,
        details=dict(result.details),
    )
