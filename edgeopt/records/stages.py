"""Records of a run, its stages on the host, and what they go on with."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeopt.records.fields import (
    Count,
    Hash,
    Inside,
    Name,
    Nats,
    NatsPair,
    Pair,
    Part,
    Points,
    Positive,
    Record,
    SchemeName,
    Share,
    Temperature,
    Text,
)


class RunInfo(Record):
    """``run.json``."""

    id: Name
    created: Text
    fingerprint: Text
    data_root: Text | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    machine: Text | None = None
    host: Text | None = None


class Output(Part):
    """A file that a stage made."""

    path: Inside
    sha256: Hash


class CommitRecord(Record):
    """What all records share that a stage is committed by: it exists once its record does."""

    created: Text
    key: Text
    outputs: dict[Text, Output]


class StageRecord(CommitRecord):
    """``host/<variant>/stage.json``."""

    fix: ClassVar[str] = "get the run again from its source, or remove the variant with edgeopt rm"

    class Metrics(Part):
        """Of the variant's model."""

        val_top1: Share | None = None
        parameters: Count | None = None
        macs: Count | None = None
        temperature: Temperature | None = None

    class Fold(Part):
        """Which part of train the model was not trained on."""

        fold: Count
        of: Count

    class Ingredients(Part):
        """The models it was kept of, and what each scores on val."""

        val_scores: dict[Name, Share]

    class CrossValidation(Part):
        """Figures of the folds."""

        fold_top1: list[Share]
        mean_top1: Share
        spread_top1: Share

    class Pruning(Part):
        """What was cut: layers' widths before and after, and why others kept theirs."""

        class Latency(Part):
            """Of the int8 engine of what is left, before it was trained: the share of the whole network's latency."""

            target: Name
            share_of_unpruned: Positive
            share_of_unpruned_ci: Pair | None = None

        macs_before: Count | None = None
        macs_after: Count | None = None
        parameters_before: Count | None = None
        parameters_after: Count | None = None
        latency: Latency | None = None
        widths: dict[Text, Annotated[list[Count], Field(min_length=2, max_length=2)]] = Field(default_factory=dict)
        untouched: dict[Text, Text] = Field(default_factory=dict)

    class Ladder(Part):
        """The ways to int8 that were tried, cheapest first."""

        class Rung(Part):
            """One of them."""

            class Loss(Part):
                """A paired difference of the mean log-loss, nats."""

                mean: Nats
                ci: NatsPair

            class Drop(Part):
                """Of val top-1, against the float model."""

                drop_points: Points
                lower_points: Points
                upper_points: Points
                n: Count

            class Layer(Part):
                """What a layer's quantizers add to the loss."""

                layer: Text
                loss_increase: Nats

            name: Name
            title: Text
            how: Text
            val_top1: Share
            val_loss: Nats
            drop: Drop
            loss_over_float: Loss
            loss_over_best: Loss | None = None
            seconds: Annotated[float, Field(ge=0, le=1e9)]
            holds: bool
            p50_ms: Positive | None = None
            float_layers: list[Text] | None = None
            sensitivity: list[Layer] | None = None

        class TimedLayer(Part):
            """What a layer's quantizers add to the loss, and what leaving it in float adds to a call, measured."""

            layer: Text
            loss_increase: Nats
            cost_ms: Annotated[float, Field(ge=-1e9, le=1e9)]

        class Limits(Part):
            """What a call allowed: seconds, of all that it made, and rungs."""

            time: Annotated[float, Field(ge=0, le=1e9)] | None = None
            trials: Count | None = None

        max_drop_points: Points
        reference: Name
        chosen: Name
        stopped: Text
        limits: Limits | None = None
        verdict: Literal["met", "undecided", "missed"]
        pictures_to_decide: Count | None = None
        timed_on: Name | None = None
        layers: list[TimedLayer] | None = None
        rungs: Annotated[list[Rung], Field(min_length=1, max_length=1000)]

    class LatencySearch(Part):
        """What was timed before training, and what was planned of it. Shares are of the unpruned engine's latency."""

        class Measured(Part):
            """An engine."""

            p50_ms: Positive
            share_of_unpruned: Positive
            share_of_unpruned_ci: Pair | None = None

        class Plan(Part):
            """Widths, or blocks that go, by one way of choosing them; not measured where another device is meant."""

            way: Text
            met: bool
            p50_ms: Positive | None = None
            share_of_unpruned: Positive | None = None
            share_of_unpruned_ci: Pair | None = None
            predicted_share: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
            kept_importance: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
            untrained_val_loss: Nats | None = None

        class Goal(Part):
            """What was asked for."""

            limit_share: Positive

        class TableError(Part):
            """How far predictions were off on engines held out."""

            engines: Count
            median: Annotated[float, Field(ge=0, le=1e9)]
            largest: Annotated[float, Field(ge=0, le=1e9)]

        goal: Goal
        candidates: Annotated[list[Measured], Field(min_length=1, max_length=1000)]
        sizes: Annotated[list[Measured], Field(max_length=1000)]
        table_error: TableError
        plans: Annotated[list[Plan], Field(min_length=1, max_length=1000)]
        chosen: Plan

    fold: Fold | None = None
    ladder: Ladder | None = None
    latency_search: LatencySearch | None = None
    pruning: Pruning | None = None
    ingredients: Ingredients | None = None
    cross_validation: CrossValidation | None = None
    command: Text | None = None
    machine: Text | None = None
    host: Text | None = None
    versions: dict[Text, Text] | None = None
    parent: Name | None
    scheme: SchemeName | None = None
    float_layers: list[Text] | None = None  # of an int8 variant: those left in float by request
    metrics: Metrics | None = None
    inputs: dict[Text, Any] | None = None
    config: dict[Text, Any] | None = None


class LatencyVerdict(CommitRecord):
    """``host/<int8 variant>/latency/verdict.json``: what its engine measured against the latency asked for."""

    fix: ClassVar[str] = "delete it, and measure again with the same edgeopt compress"

    asked: Text
    target: Name
    verdict: Literal["met", "undecided", "missed"]
    seconds_to_decide: Positive | None = None
    p50_ms: Positive
    p50_ci_ms: Pair | None = None
    share_of_unpruned: Positive
    share_of_unpruned_ci: Pair | None = None
    val_top1: Share
    recommended: bool
    rival: Name | None = None


class EnsembleRecord(CommitRecord):
    """``host/<name>/ensemble.json``: variants that answer together, and how."""

    fix: ClassVar[str] = "get the run again from its source, or remove the ensemble with edgeopt rm"

    class Member(Part):
        """A variant of the run, as it was."""

        variant: Name
        model_sha256: Hash
        temperature: Temperature
        val_top1: Share | None = None

    class Metrics(Part):
        """Of its answers on val."""

        val_top1: Share | None = None
        temperature: Temperature | None = None

    vote: Literal["soft", "hard", "weighted", "stacking"]
    members: Annotated[list[Member], Field(min_length=2, max_length=1000)]
    weights: Annotated[list[Share], Field(max_length=1000)] | None = None
    metrics: Metrics
    best_member: Name
    versions: dict[Text, Text] | None = None

    @model_validator(mode="after")
    def _fit(self) -> EnsembleRecord:
        names = [member.variant for member in self.members]
        if self.best_member not in names:
            raise ValueError("its best member is none of its members")
        if (self.vote == "weighted") != (self.weights is not None) or len(self.weights or names) != len(names):
            raise ValueError("its weights do not fit its members")
        return self


class LogLine(Part):
    """A line of ``log.jsonl``; those that end an epoch have all of these."""

    epoch: Count | None = None
    train_loss: Annotated[float, Field(ge=-1e12, le=1e12)] | None = None
    val_top1: Share | None = None


class LrRangeRecord(Record):
    """``lr_range.json``: the smoothed loss at each learning rate tried."""

    fix: ClassVar[str] = "delete it: the report goes without, and a training that it was for tries rates anew"

    lr: Positive
    rates: Annotated[list[Positive], Field(min_length=2, max_length=10_000)]
    smoothed: Annotated[list[Annotated[float, Field(ge=-1e12, le=1e12)]], Field(min_length=2, max_length=10_000)]

    @model_validator(mode="after")
    def _a_loss_for_every_rate(self) -> LrRangeRecord:
        if len(self.rates) != len(self.smoothed):
            raise ValueError("it has not one loss for each rate")
        return self


class OutOfFoldRecord(Record):
    """``out_of_fold.json``: of which picture, with which label and in which fold, each row of the array beside is."""

    fix: ClassVar[str] = "train again: edgeopt finetune DATA --folds K --force"
    limit: ClassVar[int] = 256 * 2**20  # a line a picture

    paths: list[Text]
    labels: list[Count]
    folds: list[Count]

    @model_validator(mode="after")
    def _fit(self) -> OutOfFoldRecord:
        if not len(self.paths) == len(self.labels) == len(self.folds):
            raise ValueError("its columns differ in length")
        return self
