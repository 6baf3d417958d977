"""Int8 variants with named layers back in float, made of trained ones without training: mixed precision on request."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgeopt.compress.mixed import in_float, int8_layers
from edgeopt.compress.quantize import quantizer_config
from edgeopt.console import Console, Silent
from edgeopt.errors import MissingStageError
from edgeopt.run import Run, stage_key
from edgeopt.stages.passes import model_hash
from edgeopt.stages.training import evaluate_val
from edgeopt.stages.variants import Variant, commit_variant, open_variant
from edgeopt.stages.workspace import Workspace, open_workspace

VERSION = 1


def mix(
    run: Run,
    float_layers: Sequence[str],
    *,
    variants: Sequence[str] = (),
    data: str | None = None,
    force: bool = False,
    console: Console | None = None,
) -> list[Variant]:
    """``<variant>-mixed`` of each int8 variant in ``variants`` (default: all), with ``float_layers`` in float.

    They are names of layers, as in ``fusion.json``, or of modules with such layers in them. Weights and ranges are
    those of the variant it is made of, nothing is trained; val is judged anew. Raises ModelError for names that are no
    int8 layers, MissingStageError where there is no int8 variant, RunError and DataError when the pictures are gone.
    """
    console = console or Silent()
    known = {name: record for name, record in run.variants().items() if record.get("scheme")}
    wanted = list(variants) or [name for name, record in known.items() if not record.get("float_layers")]
    if not wanted:
        raise MissingStageError(
            f"{run.path} has no int8 variant to leave layers of in float", fix="edgeopt compress --int8"
        )
    workspace = open_workspace(run, data=data, console=console)
    with run.lock():
        return [_mix_one(workspace, open_variant(run, name), float_layers, force, console) for name in wanted]


def _mix_one(
    workspace: Workspace, source: Variant, float_layers: Sequence[str], force: bool, console: Console
) -> Variant:
    model = source.load()
    example = torch.zeros((2, *source.preprocess.input_shape))
    layers = int8_layers(model, example, float_layers)
    inputs = {"dataset": str(workspace.run.info["fingerprint"]), "source": model_hash(source)}
    config = {"float_layers": layers}
    stage = workspace.run.stage(
        "host",
        f"{source.name}-mixed",
        record="stage.json",
        key=stage_key(inputs=inputs, config=config, version=VERSION),
        force=force,
        outdated=workspace.run.outdated,
    )
    if stage.done:
        return Variant(workspace.run, stage.name, stage.skipped(console), skipped=True)
    with console.task(f"leaving {', '.join(layers)} of {source.name} in float"):
        mixed = in_float(model, example, layers)
        metrics = evaluate_val(mixed, workspace, source.preprocess)
    architecture, scheme = source.architecture, source.record["scheme"]
    made = commit_variant(
        stage,
        mixed,
        architecture.quantized(quantizer_config(mixed), scheme),
        source.preprocess,
        parent=source.name,
        stage_name="mix",
        config=config,
        origin={"float_layers": "command line"},
        inputs=inputs,
        metrics=metrics,
        float_layers=layers,
        calibration=source.record.get("calibration", {"schema": 1}),
    )
    console.say(made.summary())
    return made
