"""Int8 models timed on this machine before they are variants: exported, built and measured interleaved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

from torch import nn

from edgeopt import environment
from edgeopt.bench.bed import Bed, temporary_bed
from edgeopt.config import Target, load_target
from edgeopt.export.qdq import export_qdq
from edgeopt.metrics import Interval
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import load_backend
from edgeopt.schemes import get_scheme
from edgeopt.stages.passes import Job

_TARGETS = ("onnxruntime", "openvino")  # for a call that names none


def bed_of(job: Job, target: Target, scheme: str) -> AbstractContextManager[Bed]:
    """A place to build the job's engines in that is gone afterwards; pictures as large as the job's start has them."""
    return temporary_bed(target, scheme, job.start.preprocess, job.console)


def times_of(
    job: Job, scheme: str, spec: PreprocessSpec, models: Mapping[str, nn.Module], *, seconds: float
) -> tuple[str, dict[str, Interval]] | None:
    """The target, and the median milliseconds of a call by each int8 model's engine; None where none runs here.

    Raises BackendError where one cannot be timed.
    """
    target = _target(job, scheme)
    if target is None:
        return None
    with bed_of(job, target, scheme) as bed, job.console.task(f"timing {len(models)} engines") as progress:
        built = []
        for number, (name, model) in enumerate(models.items()):
            onnx = bed.folder / f"{number}.onnx"
            export_qdq(model, onnx, input_shape=spec.input_shape, scheme=get_scheme(scheme))
            built.append(bed.build(name, onnx, spec))
        result = bed.measure(built, seconds, width=0.02, progress=progress)
    return target.name, {name: result.measured(name).p50 for name in models}


def all_here(job: Job) -> list[tuple[Target, str]]:
    """The targets that this machine is, each with the first of the job's schemes that its backend runs exactly here."""
    found = []
    for profile, schemes in _here(job):
        wanted = job.config.schemes or ((profile.scheme,) if profile.scheme else schemes)
        found += [(profile, scheme) for scheme in wanted if scheme in schemes][:1]
    return found


def _target(job: Job, scheme: str) -> Target | None:
    """The first that this machine is, and whose backend runs the scheme exactly here."""
    return next((profile for profile, schemes in _here(job) if scheme in schemes), None)


def _here(job: Job) -> Iterator[tuple[Target, tuple[str, ...]]]:
    """The job's targets that this machine is, where their runtime is installed, and the schemes it runs exactly."""
    for name in job.targets or _TARGETS:
        profile = load_target(name)
        backend = load_backend(profile.backend)
        if environment.matches(profile.match) and backend.availability().ok:
            yield profile, tuple(backend.schemes_on(profile))
