"""The ladder: the cheapest way to int8 that keeps the accuracy asked for, one rung after another, each recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.compress.quantize import quantizer_config
from edgeopt.config import CompressConfig, load_calibration, origins
from edgeopt.metrics import PairedDrop, pictures_to_decide
from edgeopt.run import discard
from edgeopt.stages.passes import Job, inputs_of, model_hash, open_stage
from edgeopt.stages.quantizing import KEYS, int8_name, origin_of_schemes, wants_int8_outputs
from edgeopt.stages.rungs import RUNGS, VERSION, Ladder, Rung
from edgeopt.stages.training import val_figures
from edgeopt.stages.variants import Variant, commit_variant
from edgeopt.training_tables import seconds_of

_LIMITS = ("time", "trials")


def climbed(
    job: Job, source: Variant, scheme: str, trained: Variant | None, *, seconds: float = float("inf")
) -> Variant:
    """The int8 variant of ``source`` by the first rung that loses at most ``max_drop`` points of the start's val top-1.

    Rungs, in order of what they cost: post-training ranges; the best of other range estimators and more pictures;
    distilled quantization-aware training; three times as much of it; then the 1, 2, 4, 8 layers that int8 hurts most
    left in float. ``trained`` is an int8 variant whose weights are taken over. ``seconds``, the share of
    ``config.time`` that is left for it, and ``config.trials`` end the climb early. Where no rung holds, the one of
    lowest val loss is kept. A rung that was interrupted goes on, as does a climb that either of the two ended and now
    would end later, and none is climbed twice. The variant's record has the ladder: every rung, the verdict, and what
    it rests on.
    """
    config = {
        **job.config.model_dump(include=KEYS | {"max_drop"}),
        **job.config.lesson(),
        "calibration": load_calibration(job.config.calibration).model_dump(mode="json", by_alias=True),
        "scheme": scheme,
        "int8_outputs": wants_int8_outputs(job.config, scheme, job.targets),
        "ladder": VERSION,
    }
    inputs = {**inputs_of(job, source), **({"weights_from": model_hash(trained)} if trained else {})}
    stage = open_stage(job, int8_name(job, source, scheme), inputs, config)
    if stage.done:
        record = stage.skipped(job.console)
        before = record["ladder"]
        if not ends_later(before, job.config):
            job.clock.add(seconds_spent(before))
            return Variant(job.run, stage.name, record, skipped=True)
        job.console.say(f"{stage.name}: its climb was ended by --{before['stopped']}, and goes on")
    ladder = Ladder(job, source, scheme, trained, stage, seconds=seconds)
    stopped = ladder.climb()
    chosen = taken(ladder.rungs)
    verdict = judged(ladder.drop(chosen.answers), float(job.config.max_drop or 0.0))
    model, timed = chosen.load(job.run), ladder.timed()
    if stage.done:
        stage.reopen(keep=RUNGS)
    variant = commit_variant(
        stage,
        model,
        source.architecture.quantized(quantizer_config(model), scheme),
        source.preprocess,
        parent=source.name,
        stage_name="quantize",
        config=config,
        origin={**origins(job.config, config), "scheme": origin_of_schemes(job)},
        inputs=inputs,
        metrics=val_figures(chosen.answers, ladder.labels),
        calibration=chosen.record["calibration"],
        weights_from=trained.name if trained else None,
        teacher=job.teacher.name,
        ladder={
            "max_drop_points": job.config.max_drop,
            "reference": job.start.name,
            "chosen": chosen.name,
            "stopped": stopped,
            "limits": _limits(job.config),
            **verdict,
            **timed,
        },
    )
    job.console.say(f"{variant.name}: {words(verdict, chosen.record)}")
    if stopped in _LIMITS:
        job.console.say(f"  its rungs are kept: with more --{stopped} it goes on from them")
    else:
        discard(stage.folder / RUNGS)
    return variant


def ends_later(ladder: Mapping[str, Any], config: CompressConfig) -> bool:
    """Whether the limit that ended the climb of this record lets ``config`` go on, and the other one does, too."""
    if ladder["stopped"] not in _LIMITS:
        return False
    limits, before = _limits(config), ladder.get("limits") or {}
    spent = {"time": seconds_spent(ladder), "trials": len(ladder["rungs"])}
    stated = before.get(ladder["stopped"])
    if stated is not None:  # the same limit, stated again, is no more of it, even where others took a part
        spent[ladder["stopped"]] = max(spent[ladder["stopped"]], stated)
    return all(limit is None or limit > spent[name] for name, limit in limits.items())


def seconds_spent(ladder: Mapping[str, Any]) -> float:
    """That the rungs of a record took."""
    return sum(float(rung["seconds"]) for rung in ladder["rungs"])


def _limits(config: CompressConfig) -> dict[str, float | None]:
    """Of a climb, by what it says where one of them ended it: seconds, and rungs."""
    return {"time": None if config.time is None else seconds_of(config.time), "trials": config.trials}


def taken(rungs: Sequence[Rung]) -> Rung:
    """The first of ``rungs`` that holds, or, where none does, the one of lowest val loss."""
    return next((rung for rung in rungs if rung.holds), None) or min(rungs, key=lambda rung: rung.loss)


def judged(drop: PairedDrop, limit: float) -> dict[str, Any]:
    """``verdict`` of a drop against ``limit`` points: met when its upper 95 % bound is within, missed when it is above.

    ``pictures_to_decide`` says how many val pictures would tell, where these do not.
    """
    verdict = "missed" if drop.drop_points > limit else "met" if drop.upper_points <= limit else "undecided"
    decided = verdict == "met" or drop.lower_points > limit
    return {
        "verdict": verdict,
        "pictures_to_decide": None if decided else pictures_to_decide(drop.lost, drop.gained, drop.n, limit),
    }


def words(verdict: Mapping[str, Any], rung: Mapping[str, Any]) -> str:
    """One line for a person."""
    drop = rung["drop"]
    line = (
        f"{verdict['verdict']} by {rung['title']}: drop {drop['drop_points']:.2f} points on {drop['n']} val pictures, "
        f"at most {drop['upper_points']:.2f} at 95 %"
    )
    if verdict["pictures_to_decide"]:
        line += f"; {verdict['pictures_to_decide']} val pictures would decide"
    return line
