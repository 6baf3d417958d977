"""Which of several models of one kind is kept: the best on val, or the greedy soup of their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.config import EnsembleConfig, origins
from edgeopt.console import Console
from edgeopt.data.sets import StreamedSet
from edgeopt.data.split import draw
from edgeopt.preprocess import PreprocessSpec
from edgeopt.run import Run, stage_key
from edgeopt.stages.training import evaluate_val
from edgeopt.stages.variants import Variant, commit_variant
from edgeopt.stages.workspace import Workspace
from edgeopt.train.evaluate_torch import evaluator
from edgeopt.train.processes import training_device
from edgeopt.train.soup import Soup, greedy_soup, rank

VERSION = 1
NAME = "float-soup"
_PICTURES = 512  # of train, for BatchNorm's statistics: enough for means over millions of positions
_BATCH = 64


@dataclass(frozen=True)
class Kept:
    """``model`` on the CPU; ``best`` is the variant that is best on val alone; ``scores`` are all of theirs."""

    model: nn.Module
    best: Variant
    soup: Soup | None
    select: str
    scores: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """For ``stage.json``."""
        used = list(self.soup.ingredients) if self.soup else [self.best.name]
        tried = [asdict(step) for step in self.soup.tried] if self.soup else []
        return {"select": self.select, "val_scores": dict(self.scores), "used": used, "tried": tried}


def keep_best_or_soup(
    workspace: Workspace,
    variants: Sequence[Variant],
    *,
    keep: Literal["best", "soup"],
    select: Literal["top1", "recall"],
    console: Console,
) -> Kept:
    """The best of ``variants`` on val, or their greedy soup; they are of one architecture and preprocessing."""
    spec = variants[0].preprocess
    device = training_device()
    states = {variant.name: variant.load().state_dict() for variant in variants}
    model = variants[0].load().to(device)
    evaluate = evaluator(workspace.prepared("val", spec), spec)
    ranked = rank(model, states, evaluate, select)
    best = next(variant for variant in variants if variant.name == ranked[0].name)
    scores = {one.name: one.figures[select] for one in ranked}
    if keep == "best":
        model.load_state_dict(states[best.name])
        console.say(f"kept: {best.name}, the best on val")
        return Kept(model.cpu().eval(), best, None, select, scores)
    with console.task("making a soup"):
        pictures = _train_batches(workspace, spec)
        soup = greedy_soup(
            model, states, ranked, evaluate, select=select, batches=lambda: (one.to(device) for one in pictures)
        )
    console.say(f"soup: {', '.join(soup.ingredients)}; of {len(variants)} models, in the order they were added")
    return Kept(model.cpu().eval(), best, soup, select, scores)


def make_soup(workspace: Workspace, variants: Sequence[Variant], *, force: bool, console: Console) -> Variant:
    """The variant ``float-soup``: the greedy soup of ``variants``, which are of one architecture and preprocessing."""
    run = workspace.run
    inputs = {"dataset": str(run.info["fingerprint"]), **{one.name: _weights(one) for one in variants}}
    asked = EnsembleConfig(vote="soup", members=tuple(one.name for one in variants))
    config = {"ensemble": asked.model_dump(mode="json")}
    key = stage_key(inputs=inputs, config=config, version=VERSION)
    stage = run.stage(
        "host", NAME, record="stage.json", key=key, force=force, outdated=lambda record: _changed(run, record)
    )
    if stage.done:
        return Variant(run, stage.name, stage.skipped(console), skipped=True)
    kept = keep_best_or_soup(workspace, variants, keep="soup", select="top1", console=console)
    trained = kept.best.record
    return commit_variant(
        stage,
        kept.model,
        kept.best.architecture,
        kept.best.preprocess,
        parent=None,
        stage_name="soup",
        # Its weights come from these trainings, whose augmentation and batches compression goes on with.
        config={**dict(trained.get("config") or {}), **config},
        origin={**dict(trained.get("config_origin") or {}), "ensemble": origins(asked, config["ensemble"])},
        inputs=inputs,
        metrics={
            **evaluate_val(kept.model, workspace, kept.best.preprocess),
            "training": dict((trained.get("metrics") or {}).get("training") or {}),
        },
        ingredients=kept.to_json(),
    )


def _weights(variant: Variant) -> str:
    return variant.run.stated(variant.record, "model")[1]


def _changed(run: Run, record: Mapping[str, Any]) -> bool:
    """Whether a variant that the soup of this record was made of was made again since."""
    known, inputs = run.variants(), record.get("inputs") or {}
    return any(name in known and run.stated(known[name], "model")[1] != stated for name, stated in inputs.items())


def _train_batches(workspace: Workspace, spec: PreprocessSpec) -> list[Tensor]:
    """Train pictures as evaluation sees them, in batches of nearly equal size: BatchNorm cannot do with one of one."""
    items = draw(workspace.dataset.of("train"), _PICTURES, seed=workspace.data.seed)
    parts = np.array_split(np.arange(len(items)), -(-len(items) // _BATCH))
    streamed = (
        StreamedSet(workspace.dataset, [items[index] for index in part], workspace.data.max_pixels) for part in parts
    )
    return [torch.from_numpy(batch) for one in streamed for batch in one.batches(spec, _BATCH)]
