"""The quantization pass of a run: int8 ranges from calibration pictures, then distilled quantization-aware training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from edgeopt.compress.quantize import quantize, quantizer_config, remove_quantizers
from edgeopt.config import CalibrationRecipe, CompressConfig, load_calibration, load_target, origins
from edgeopt.models.branches import merge_branches, merged_names
from edgeopt.schemes import get_scheme
from edgeopt.stages.calibrating import CalibrationBatches, calibration_set
from edgeopt.stages.passes import Job, inputs_of, model_hash, open_stage, training_recipe
from edgeopt.stages.training import TrainingPlan, evaluate_val, fit
from edgeopt.stages.variants import Variant, commit_variant

KEYS = {"epochs", "lr", "scale_lr", "batchnorm_epochs", "ema_decay", "light_end", "ignore"}
SHORT_QAT = 0.34  # of the epochs, when the weights come from a trained int8 variant and only the ranges are new


def quantized(job: Job, source: Variant, schemes: Sequence[str], *, later: int = 0) -> Iterator[Variant]:
    """Int8 variants of ``source``; s8a8w takes over the weights of the scheme before it, with ranges of its own.

    Where they are climbed to and the call's time is bounded, each may take an equal share of what is left of it;
    ``later`` variants are to come of another source.
    """
    from edgeopt.stages.ladder import climbed

    trained: Variant | None = None
    for position, scheme in enumerate(schemes):
        trained_first = trained if trained is not None and scheme == "s8a8w" else None
        if job.config.max_drop is None:
            variant = _quantize_one(job, source, scheme, trained_first)
        else:
            seconds = job.clock.left / (len(schemes) - position + later)
            variant = climbed(job, source, scheme, trained_first, seconds=seconds)
        trained = trained or variant
        yield variant


def int8_name(job: Job, source: Variant, scheme: str) -> str:
    """``int8-<scheme>`` and what ``source`` has behind ``float`` in its name."""
    suffix = source.name.removeprefix(job.start.name)
    return f"int8-{scheme}{job.start.name.removeprefix('float')}{suffix}"


def wants_int8_outputs(config: CompressConfig, scheme: str, targets: Sequence[str]) -> bool:
    """Whether convolutions before swish, GELU and the like get int8 outputs: ONNX Runtime runs them in float without.

    OpenVINO and TensorRT do not need them, and OpenVINO is slower with them (see ``compress.quantize.quantize``).
    """
    if config.int8_outputs is not None:
        return config.int8_outputs
    backends = {load_target(name).backend for name in targets}
    return not get_scheme(scheme).activation_signed and (not backends or "onnxruntime" in backends)


def _quantize_one(job: Job, source: Variant, scheme: str, trained: Variant | None) -> Variant:
    """One scheme; ``trained`` is an int8 variant whose weights are taken over, with fresh ranges and a short QAT."""
    recipe = load_calibration(job.config.calibration)
    int8_outputs = wants_int8_outputs(job.config, scheme, job.targets)
    inputs = {**inputs_of(job, source), **({"weights_from": model_hash(trained)} if trained else {})}
    config = {
        **job.config.model_dump(include=KEYS),
        **job.config.lesson(),
        "calibration": recipe.model_dump(mode="json", by_alias=True),
        "scheme": scheme,
        "int8_outputs": int8_outputs,
    }
    stage = open_stage(job, int8_name(job, source, scheme), inputs, config)
    if stage.done:
        return Variant(job.run, stage.name, stage.skipped(job.console), skipped=True)
    spec = source.preprocess
    start = remove_quantizers(trained.load()) if trained else source.load()
    model = calibrated(job, start, scheme, recipe, source, int8_outputs=int8_outputs)
    ptq = evaluate_val(model, job.workspace, spec)
    job.console.say(f"{stage.name}: ranges set, val top-1 {ptq['val_top1']:.2%} before training")
    plan = TrainingPlan.for_qat(job.config, **training_recipe(job), share=SHORT_QAT if trained else 1.0)
    plan = plan.again(1) if trained else plan
    metrics = fit(plan, model, job.workspace, spec, folder=stage.folder, console=job.console, teacher=job.teacher)
    return commit_variant(
        stage,
        model,
        source.architecture.quantized(quantizer_config(model), scheme),
        spec,
        parent=source.name,
        stage_name="quantize",
        config=config,
        origin={**origins(job.config, config), "scheme": origin_of_schemes(job)},
        inputs=inputs,
        metrics={**metrics, "ptq_val_top1": ptq["val_top1"], "ptq_val_loss": ptq["val_loss"]},
        calibration=recipe.model_dump(mode="json", by_alias=True),
        weights_from=trained.name if trained else None,
        teacher=job.teacher.name,
    )


def calibrated(
    job: Job,
    model: nn.Module,
    scheme: str,
    recipe: CalibrationRecipe,
    source: Variant,
    *,
    int8_outputs: bool,
    ignored: Sequence[str] = (),
) -> nn.Module:
    """``model`` with int8 ranges from the pictures that ``recipe`` draws for ``source``; ``ignored`` stays float.

    Branches are merged first: what is trained in int8 is what will run.
    """
    merging = merge_branches(model, source.preprocess.input_shape)
    deployed = merging.model
    if merging.problem:
        job.console.say(f"{source.name}: {merging.said}")
    pictures = calibration_set(job.workspace, recipe, source)
    with job.console.task(f"setting int8 ranges ({scheme})") as progress:
        return quantize(
            deployed,
            CalibrationBatches(pictures, source.preprocess),
            scheme=get_scheme(scheme),
            range_estimator=recipe.range,
            ignored=merged_names(model, deployed, (*job.config.ignore, *ignored)),
            int8_outputs=int8_outputs,
            progress=progress,
        )


def origin_of_schemes(job: Job) -> str:
    """Who stated which schemes are made."""
    if job.config.schemes:
        return origins(job.config, {"schemes": None})["schemes"]
    return "target" if job.targets else "this machine's CPU, and TensorRT"
