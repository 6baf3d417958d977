"""Several trained variants made to answer as one: by votes, fitted weights, stacking, or as a soup of their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from edgeopt.config import EnsembleConfig, listed, origins, validate
from edgeopt.console import Console, Silent
from edgeopt.errors import ConfigError, did_you_mean
from edgeopt.files import write_npy
from edgeopt.metrics import Float64, Int64
from edgeopt.run import Run, stage_key
from edgeopt.stages.folds import OutOfFold, read_out_of_fold
from edgeopt.stages.soups import make_soup
from edgeopt.stages.training import val_figures
from edgeopt.stages.variants import Variant, open_variant
from edgeopt.stages.voters import Ensemble, probabilities, voter_of
from edgeopt.stages.workspace import Workspace, open_workspace
from edgeopt.voting import Combination, Vote, fit_stacking, fit_weights

VERSION = 1
_STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of stacking, from much penalty to little; val picks


def ensemble(
    run: Run,
    members: Sequence[str] = (),
    *,
    vote: str = "soft",
    data: str | None = None,
    force: bool = False,
    console: Console | None = None,
) -> Ensemble | Variant:
    """Make ``members`` (names or patterns of variants; default: the models of the original's folds) answer as one.

    ``vote`` is a rule of :class:`edgeopt.voting.Combination`: ``soft``, ``hard``, ``weighted`` (weights fitted on val)
    or ``stacking`` (logistic regression of the out-of-fold answers of cross-validated members, its penalty picked on
    val). Members may differ in model and input size; each answers at the temperature fitted for it on val, and a
    cross-validated member with the model that was kept of its folds. What is fitted on val looks better there than it
    is: ``evaluate`` judges on test. The result is the ensemble ``ensemble-<vote>`` of the run, for ``evaluate``,
    ``predict`` and as ``CompressConfig.teacher``. ``soup`` averages the weights of members of one architecture while
    val accuracy does not fall: the result is a variant, ``float-soup``, to compress and build like any other.

    Raises ConfigError with everything that is wrong with the members, MissingStageError, DataError.
    """
    console = console or Silent()
    vote = validate(EnsembleConfig, {"vote": vote}, where="ensemble").vote
    chosen = [open_variant(run, name) for name in _named(run, members)]
    _require_fit(chosen, vote)
    workspace = open_workspace(run, data=data, console=console)
    with run.lock():
        if vote == "soup":
            return make_soup(workspace, chosen, force=force, console=console)
        return _make(workspace, chosen, vote, force=force, console=console)


def _named(run: Run, members: Sequence[str]) -> list[str]:
    """The variants meant, each once, in the order named; patterns in the order of the run's variants."""
    known = run.variants()
    if not members:
        made = (known[run.original()].get("ingredients") or {}).get("val_scores") or {}
        return [name for name in known if name in made]
    found: dict[str, None] = {}
    for name in members:
        matches = [one for one in known if fnmatchcase(one, name)]
        found.update(dict.fromkeys(matches if matches and name not in known else [name]))
    if unknown := [name for name in found if name not in {*known, *run.ensembles()}]:
        hints = ", ".join(f'"{name}"{did_you_mean(name, known)}' for name in unknown)
        raise ConfigError(f"{run.path} has no variant {hints}", fix=f"use some of {', '.join(known) or '(none yet)'}")
    return list(found)


def _require_fit(chosen: Sequence[Variant], vote: str) -> None:
    """Raise ConfigError with every reason why ``chosen`` cannot answer together so."""
    problems = []
    if len(chosen) < 2:
        named = f"{chosen[0].name} is alone" if chosen else "none are named, and the original has no folds"
        problems.append(f"members: an ensemble needs two variants or more, and {named}")
    if vote == "soup":
        problems += _against_soup(chosen)
    if vote == "stacking":
        problems += [_without_answers(one) for one in chosen if "out_of_fold" not in one.record["outputs"]]
    if problems:
        fixes = {
            "stacking": "finetune each member with --folds K, or take --vote weighted",
            "soup": "name variants of one model and input size, or take --vote soft",
        }
        raise ConfigError(
            listed(problems, where="ensemble"),
            fix=fixes.get(vote, "name variants that `edgeopt show` lists; finetune --folds K makes K of them"),
        )


def _without_answers(variant: Variant) -> str:
    if variant.record.get("fold"):
        return (
            f"{variant.name}: is the model of one fold, trained on all pictures of the others; name what was kept of it"
        )
    return f"{variant.name}: was not cross-validated, so there are no out-of-fold answers to learn from"


def _against_soup(chosen: Sequence[Variant]) -> list[str]:
    problems = [
        f"{one.name}: is int8, and quantized weights do not average" for one in chosen if one.architecture.scheme
    ]
    for one in chosen[1:]:
        if one.architecture != chosen[0].architecture:
            problems.append(f"{one.name}: is not of the same architecture as {chosen[0].name}")
        elif one.preprocess != chosen[0].preprocess:
            problems.append(f"{one.name}: its pictures are not prepared as those of {chosen[0].name}")
    return problems


def _make(workspace: Workspace, chosen: Sequence[Variant], vote: Vote, *, force: bool, console: Console) -> Ensemble:
    run = workspace.run
    hashes = {one.name: run.stated(one.record, "model")[1] for one in chosen}
    # What stacking learns from is of the folds' models, and may change where the kept one does not.
    learned = {
        f"{one.name} out of fold": run.stated(one.record, "out_of_fold")[1] for one in chosen if vote == "stacking"
    }
    inputs = {"dataset": str(run.info["fingerprint"]), **hashes, **learned}
    asked = EnsembleConfig(vote=vote, members=tuple(hashes))
    config = asked.model_dump(mode="json")
    stage = run.stage(
        "host",
        f"ensemble-{vote}",
        record="ensemble.json",
        key=stage_key(inputs=inputs, config=config, version=VERSION),
        force=force,
        outdated=run.outdated,
    )
    if stage.done:
        return Ensemble(run, stage.name, stage.skipped(console), skipped=True)
    voters = [voter_of(one) for one in chosen]
    with console.task("members' answers on val"):
        answers = [probabilities(voter, workspace.prepared("val", voter.spec)) for voter in voters]
    labels: Int64 = np.array(workspace.prepared("val", voters[0].spec).labels, np.int64)
    alone = {
        one.name: val_figures(np.log(np.maximum(p, 1e-12)), labels) for one, p in zip(chosen, answers, strict=True)
    }
    best = min(alone, key=lambda name: (-alone[name]["val_top1"], alone[name]["val_loss"]))
    combination, extra = _fitted(vote, chosen, answers, labels)
    outputs = {}
    if combination.coefficients is not None:
        outputs["coefficients"] = write_npy(stage.folder / "coefficients.npy", combination.coefficients)
    record = stage.commit(
        outputs=outputs,
        stage="ensemble",
        vote=vote,
        members=[
            {
                "variant": one.name,
                "model_sha256": hashes[one.name],
                "temperature": voter.temperature,
                **{name: alone[one.name][name] for name in ("val_top1", "val_loss")},
            }
            for one, voter in zip(chosen, voters, strict=True)
        ],
        best_member=best,
        weights=list(combination.weights) if combination.weights else None,
        config=config,
        config_origin=origins(asked, config),
        inputs=inputs,
        metrics=val_figures(combination.log_probabilities(answers), labels),
        **extra,
    )
    return Ensemble(run, stage.name, record, skipped=False)


def _fitted(
    vote: Vote, chosen: Sequence[Variant], answers: Sequence[Float64], labels: Int64
) -> tuple[Combination, Mapping[str, Any]]:
    """The rule, what it learns fitted, and what the record says of that; ``answers`` and ``labels`` are of val."""
    if vote == "weighted":
        return Combination(vote, weights=fit_weights(answers, labels)), {}
    if vote != "stacking":
        return Combination(vote), {}
    held_out = [read_out_of_fold(one) for one in chosen]
    _require_same_pictures(chosen, held_out)
    losses: dict[float, float] = {}
    found: dict[float, Combination] = {}
    for strength in _STRENGTHS:
        coefficients = fit_stacking(
            [one.probabilities for one in held_out], held_out[0].labels, answers[0].shape[1], strength=strength
        )
        found[strength] = Combination(vote, coefficients=coefficients)
        losses[strength] = float(val_figures(found[strength].log_probabilities(answers), labels)["val_loss"])
    strength = min(losses, key=lambda one: losses[one])
    return found[strength], {"strength": strength, "val_losses": {f"{key:g}": loss for key, loss in losses.items()}}


def _require_same_pictures(chosen: Sequence[Variant], held_out: Sequence[OutOfFold]) -> None:
    for one, answers in zip(chosen, held_out, strict=True):
        if answers.paths != held_out[0].paths:
            raise ConfigError(
                f"the out-of-fold answers of {one.name} are not of the pictures of {chosen[0].name}",
                fix="finetune both with --folds in this run, with --force",
            )
