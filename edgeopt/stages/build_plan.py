"""What a build makes: which engines a target wants of a run, from which exported files, and into which folder."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeopt import environment
from edgeopt.backends.base import Backend
from edgeopt.config import Target
from edgeopt.console import Console
from edgeopt.errors import LoweringError, MissingStageError, ParityError
from edgeopt.registry import load_backend
from edgeopt.run import Run
from edgeopt.schemes import get_scheme, made_elsewhere


@dataclass(frozen=True)
class Planned:
    """One engine to build: its folder's name, the variant it comes from, and how."""

    name: str
    variant: str
    precision: str
    scheme: str | None
    embed: bool = False  # normalization in the graph

    def config(self) -> dict[str, Any]:
        """As in the stage's key; what was not asked for leaves earlier engines what they are."""
        return {name: value for name, value in asdict(self).items() if name != "embed" or value}


def plan(run: Run, target: Target, backend: Backend, variants: Sequence[str] = ()) -> list[Planned]:
    """The engines ``target`` wants: float ones in the backend's float precisions, then the int8 variants that fit.

    The float ones are the original, those named in ``variants`` and, in a run without int8, the pruned ones. Variants
    whose parent was made again since are left out unless named.
    """
    for name in variants:
        run.variant(name)
    known = run.variants()
    original = run.original()
    tree = {
        name: record
        for name, record in known.items()
        if name in variants or (run.root_of(name) == original and not run.stale(name))
    }
    quantized = [name for name, record in tree.items() if record.get("scheme")]
    floats = [original, *(name for name in variants if not known[name].get("scheme"))]
    if not quantized and not variants:
        floats += [name for name, record in tree.items() if record.get("parent")]
    precisions = _floats_here(target, backend)
    planned = [
        Planned(_folder(name, precision), name, precision, None)
        for name in dict.fromkeys(floats)
        if not known[name].get("scheme")  # a QDQ file from elsewhere is the original, and has no float one
        for precision in precisions
    ]
    compressible = len(tree) == 1 and known[original].get("stage") != "import"  # else what is there is wanted
    wants_int8 = target.precision == "int8" and (quantized or compressible)
    if not planned and not wants_int8:  # a float file from elsewhere
        raise MissingStageError(
            f"{target.name} builds int8 engines alone, and {original} is float",
            fix=made_elsewhere(get_scheme(_accepted(target, backend)[0])),
        )
    if not wants_int8 or (variants and not any(known[name].get("scheme") for name in variants)):
        return planned
    chosen = _int8_variants(run, target, _accepted(target, backend), tree, variants)
    return planned + [Planned(name, name, "int8", scheme) for name, scheme in chosen]


def float_precisions(target: Target) -> tuple[str, ...]:
    """Those ``target`` has float engines in: what :func:`plan` takes, and elsewhere all that its runtime knows."""
    backend: Backend = load_backend(target.backend)
    here = environment.matches(target.match) and backend.can_build().ok
    if target.precision == "int8" and not here:
        return tuple(one for one in backend.precisions if one != "int8")
    return _floats_here(target, backend)


def _floats_here(target: Target, backend: Backend) -> tuple[str, ...]:
    return backend.baselines_on(target) if target.precision == "int8" else (target.precision,)


def _folder(variant: str, precision: str) -> str:
    return variant if precision == "fp32" else f"{variant}-{precision}"


def _int8_variants(
    run: Run,
    target: Target,
    accepted: Sequence[str],
    variants: Mapping[str, Mapping[str, Any]],
    wanted: Sequence[str],
) -> Iterator[tuple[str, str]]:
    """(variant, scheme) of each int8 variant: of several made from one float parent, the best the backend runs."""
    best: dict[str, tuple[int, str, str]] = {}
    for name, record in variants.items():
        scheme = str(record.get("scheme"))
        if scheme not in accepted or (wanted and name not in wanted):
            continue
        rank = accepted.index(scheme)
        # A later variant of the same parent and scheme is another configuration: both are built.
        group = str(record["parent"]) if not wanted else name
        if group in best and best[group][0] == rank:
            group = f"{group}/{name}"
        if group not in best or rank < best[group][0]:
            best[group] = (rank, name, scheme)
    if not best:
        if run.imported:
            raise MissingStageError(
                f"{target.name} runs no int8 but {' or '.join(accepted)}, which {run.original()} is not of",
                fix=made_elsewhere(get_scheme(accepted[0])),
            )
        raise MissingStageError(
            f"{run.path} has no int8 variant that {target.name} runs (it takes {' or '.join(accepted)})",
            fix=f"edgeopt compress --int8 --scheme {accepted[0]}",
        )
    yield from ((name, scheme) for _, name, scheme in best.values())


def _accepted(target: Target, backend: Backend) -> tuple[str, ...]:
    """Schemes the target runs exactly, best first. Weights of 7 bits run wherever those of 8 bits do."""
    if target.scheme is None:
        return backend.schemes_on(target)
    return (target.scheme, "u8a7w") if target.scheme == "u8a8w" else (target.scheme,)


def mixed_variants(
    run: Run, target: Target, backend: Backend, layers: Sequence[str], variants: Sequence[str], console: Console
) -> list[str]:
    """The variants with ``layers`` in float of the int8 ones that ``target`` would build, made where torch is."""
    chosen = [item.variant for item in plan(run, target, backend, variants) if item.scheme]
    if importlib.util.find_spec("torch") is None:
        names = " ".join(f"--float-layer {shlex.quote(name)}" for name in layers)
        raise MissingStageError(
            "layers are taken back to float where the model was trained, and this machine has no torch",
            fix=f"on that machine: {target.build_command} {names}, then copy the run folder again",
        )
    from edgeopt.stages.mixing import mix

    plain = [name for name in chosen if not run.variant(name).get("float_layers")]
    return [one.name for one in mix(run, layers, variants=plain or chosen, console=console)]


def exported(run: Run, planned: Sequence[Planned], *, needed: Collection[str], console: Console) -> list[Planned]:
    """Those of ``planned`` whose variants are exported, or could be now.

    One that cannot be exported does not keep the others from being built; it is said. Raises LoweringError and
    ParityError for a variant in ``needed``, and where no int8 one would be left of some.
    """
    try:
        ensure_exports(run, {item.variant for item in planned}, console)
    except (LoweringError, ParityError) as error:
        missing = {item.variant for item in planned} - set(run.exports())
        left = [item for item in planned if item.variant not in missing]
        if missing & set(needed) or not any(item.scheme for item in left):
            raise
        for one in (error, *error.others):
            console.say(f"left out: {', '.join(sorted(missing))}: {one}")
        return left
    return list(planned)


def ensure_exports(run: Run, variants: set[str], console: Console) -> None:
    """Export what is not exported yet, where torch is; elsewhere raise MissingStageError with the command."""
    missing = sorted(variants - set(run.exports()))
    if not missing:
        return
    if importlib.util.find_spec("torch") is None:
        raise MissingStageError(
            f"{', '.join(missing)} of {run.path} is not exported to ONNX, and this machine has no torch to do it",
            fix=f"on the machine that trained it: edgeopt export --run {run.path}, then copy the run folder again",
        )
    from edgeopt.stages.export import export

    export(run, variants=missing, console=console)


def target_folder(run: Run, target: str) -> str:
    """``device/<target>`` on the machine that made the run, ``device/<target>@<machine>`` on any other.

    So what a host and several devices make of copies of one run can be copied together again, and nothing is
    overwritten; a device goes on in a folder without ``@`` whose engines it built itself.
    """
    here = environment.machine_id()
    others = [record for record in run.engines().values() if record.get("target_folder") == target]
    own = all(record.get("machine") == here for record in others)
    made_here = run.info.get("host") == environment.host_id()
    return f"device/{target}" if own and (made_here or others) else f"device/{target}@{here}"


def source_onnx(run: Run, backend: Backend, variant: str, precision: str) -> tuple[Path, dict[str, Any]]:
    """The exported file a build starts from, its hash checked, and the export's record.

    Raises LoweringError where a runtime that takes a file's types as they are wants float16, and there is none.
    """
    record = run.exports()[variant]
    rest = backend.float_rest if precision == "int8" else precision
    if rest != "fp16" or "onnx_fp16" in record["outputs"]:
        return run.output(record, "onnx_fp16" if rest == "fp16" else "onnx"), record
    problem = record.get("half_problem") or ("" if precision == "int8" else "it was not made by edgeopt export")
    if backend.float_rest == "fp16" and problem:
        raise LoweringError(
            f"{variant} has no float16 file, which {backend.name} builds from: {problem}",
            fix=("" if run.imported else "keep the model's constants within 65504, or ")
            + "build for another runtime: edgeopt build --target onnxruntime",
        )
    return run.output(record, "onnx"), record
