"""The networks that a search for a latency cuts: their quantized whole, and the rival's inputs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from torch import nn

from edgeopt.compress.latency.slices import Slicer
from edgeopt.compress.quantize import quantize
from edgeopt.config import load_calibration
from edgeopt.errors import ModelError
from edgeopt.models.branches import merge_branches, merged_names
from edgeopt.preprocess import PreprocessSpec
from edgeopt.schemes import get_scheme
from edgeopt.stages.calibrating import calibration_set
from edgeopt.stages.passes import Job
from edgeopt.stages.quantizing import wants_int8_outputs

_CALIBRATION_PICTURES = 32  # for the ranges of candidates, which nobody asks for answers


def slicer_of(job: Job, start: nn.Module, scheme: str, folder: Path) -> Slicer:
    """What writes candidates of the start, with quantizers where the real one will have them."""
    return Slicer(start, _ranged(job, start, scheme), get_scheme(scheme), folder, job.start.preprocess.input_shape)


def smaller_sizes(job: Job) -> list[PreprocessSpec]:
    """The rival's inputs, the largest first: the model's own proportions in steps its strides like."""
    spec = job.start.preprocess
    try:
        job.start.architecture.resized((spec.size[0], spec.size[1]))
    except ModelError as error:
        job.console.say(f"no rival at a smaller input: {error.message}")
        return []
    longest = max(spec.size)
    step = 32 if longest >= 192 else 16 if longest >= 96 else 8
    sides = range(longest - step, max(step, int(0.4 * longest)) - 1, -step)
    return [spec.model_copy(update={"size": _scaled(spec.size, side / longest, step)}) for side in sides]


def _scaled(size: tuple[int, int], factor: float, step: int) -> tuple[int, int]:
    height, width = (max(step, round(side * factor / step) * step) for side in size)
    return height, width


def _ranged(job: Job, model: nn.Module, scheme: str) -> nn.Module:
    """The model with quantizers where the real one will have them; a few pictures do for their ranges."""
    spec = job.start.preprocess
    pictures = calibration_set(job.workspace, load_calibration(job.config.calibration), job.start)
    batches = [torch.from_numpy(batch) for batch in islice(pictures.batches(spec, 16), _CALIBRATION_PICTURES // 16)]
    deployed = merge_branches(model, spec.input_shape).model
    return quantize(
        deployed,
        batches,
        scheme=get_scheme(scheme),
        ignored=merged_names(model, deployed, job.config.ignore),
        int8_outputs=wants_int8_outputs(job.config, scheme, job.targets),
    )
