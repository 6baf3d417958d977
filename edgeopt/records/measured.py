"""Records of what was measured of an engine: the machine, latency, accuracy, where a network looked."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from edgeopt.records.fields import (
    Count,
    Key,
    Name,
    Pair,
    Part,
    Points,
    PointsPair,
    Positive,
    Record,
    Share,
    Shares,
    Temperature,
    Text,
)


class Machine(Part):
    """What :func:`edgeopt.environment.record` says of a machine."""

    class Cpu(Part):
        """Its processor."""

        name: Text | None = None
        machine: Text | None = None
        flags: list[Text] | None = None
        cores: Count | None = None

    class Gpu(Part):
        """One of its graphics cards."""

        name: Text | None = None
        temperature_c: Annotated[float, Field(ge=-300, le=1000)] | None = None
        clock_mhz: Annotated[float, Field(ge=0, le=1e6)] | None = None
        slowed: Text | None = None

    machine_id: Text | None = None
    cpu: Cpu | None = None
    board: Text | None = None
    gpus: list[Gpu] | None = None
    memory_bytes: Count | None = None
    load_1m: Annotated[float, Field(ge=0, le=1e9)] | None = None
    governor: Text | None = None
    frequency_mhz: Annotated[float, Field(ge=0, le=1e6)] | None = None
    temperature_c: Annotated[float, Field(ge=-300, le=1000)] | None = None
    throttled: Text | None = None
    cpu_quota: Annotated[float, Field(ge=0, le=1e6)] | None = None
    memory_limit_bytes: Count | None = None
    os: Text | None = None
    python: Text | None = None
    versions: dict[Text, Text] | None = None


class LatencyRecord(Record):
    """``latency.json``; :mod:`edgeopt.bench.records` says what the fields mean."""

    fix: ClassVar[str] = "measure again: edgeopt bench"

    class Ratio(Part):
        """How many times as fast the engine is as another."""

        baseline: Key
        kind: Literal["original", "compiled", "float"]
        speedup: Positive
        speedup_ci: Pair | None = None
        quiet: bool | None = None
        by_start: Annotated[list[Positive], Field(max_length=1000)] | None = None
        starts_differ: bool | None = None

    class EndToEnd(Part):
        """From an encoded picture to the answer, ms a picture."""

        decode_ms: Annotated[float, Field(ge=0, le=1e9)]
        preprocess_ms: Annotated[float, Field(ge=0, le=1e9)]
        infer_ms: Annotated[float, Field(ge=0, le=1e9)]
        pictures: Count

    class CrossCheck(Part):
        """What the runtime's own tool measured."""

        tool: Text
        p50_ms: Positive
        edgeopt_p50_ms: Positive
        ratio: Positive
        ratio_ci: Pair | None = None
        agrees: bool | None = None

    class Search(Part):
        """The setting with the most pictures a second."""

        class Setting(Part):
            """Processes at once, and what they gave together."""

            batch: Count
            streams: Count
            threads: Count
            throughput_ips: Positive
            p50_ms: Positive
            p90_ms: Positive

        cap_ms: Positive | None = None
        best: Setting | None = None

    class Bench(Part):
        """The session that it was measured in."""

        id: Text | None = None
        seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None
        command: Text | None = None
        created: Text | None = None
        failures: dict[Text, Text] | None = None

    backend: Text | None = None
    precision: Text | None = None
    batch: Count | None = None
    threads: Count | None = None
    p50_ms: Positive | None = None
    p50_ci_ms: Pair | None = None
    p90_ms: Positive | None = None
    p99_ms: Positive | None = None
    p99_ci_ms: Pair | None = None
    device_p50_ms: Positive | None = None
    throughput_ips: Positive | None = None
    throughput_ci_ips: Pair | None = None
    samples_ms: Annotated[list[Positive], Field(max_length=100_000)] | None = None
    window_medians_ms: Annotated[list[Positive], Field(max_length=100_000)] | None = None
    windows_by_start: Annotated[list[Count], Field(max_length=1000)] | None = None
    load_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    cold_start_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    cpu_ms: Annotated[float, Field(ge=0, le=1e9)] | None = None
    end_to_end: EndToEnd | None = None
    throughput_search: Search | None = None
    cross_check: CrossCheck | None = None
    peak_memory_bytes: Count | None = None
    other_load_cores: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    stable: bool | None = None
    fits_target: bool | None = None
    ratios: Annotated[list[Ratio], Field(max_length=1000)] | None = None
    bench: Bench | None = None
    measured_on: Machine | None = None
    measured_on_after: Machine | None = None

    @model_validator(mode="after")
    def _starts_fit(self) -> LatencyRecord:
        if self.windows_by_start and sum(self.windows_by_start) != len(self.window_medians_ms or ()):
            raise ValueError("its windows are not those of its starts")
        return self


class AccuracyRecord(Record):
    """``accuracy.json``; :mod:`edgeopt.bench.records` says what the fields mean."""

    fix: ClassVar[str] = "delete it and measure again: edgeopt bench"
    limit: ClassVar[int] = 64 * 2**20  # two numbers a picture

    class Drop(Part):
        """The paired comparison with the original."""

        bootstrap_points: PointsPair | None = None
        detectable_points: Points | None = None
        lost: Count | None = None
        gained: Count | None = None
        mcnemar_p: Share | None = None

    class ClassDrop(Part):
        """How many answers of a class changed, and what that says of its recall."""

        n: Annotated[int, Field(ge=1, le=2**40)]
        lost: Count
        gained: Count
        drop_points: Points
        lower_points: Points
        upper_points: Points
        mcnemar_p: Share

    class Scores(Part):
        """Of one class."""

        n: Count | None = None
        correct: Count | None = None
        recall: Share | None = None
        precision: Share | None = None
        f1: Share | None = None
        auc: Share | None = None

    class Calibration(Part):
        """How honest the confidences are."""

        class Bin(Part):
            """Pictures of about the same confidence."""

            n: Count
            confidence: Share
            accuracy: Share

        ece: Share
        nll: Annotated[float, Field(ge=0, le=1e9)]
        bins: Annotated[list[Bin], Field(max_length=100)]

    class Mistake(Part):
        """A wrong answer."""

        index: Count
        truth: Count
        answer: Count
        probability: Share

    n: Annotated[int, Field(ge=1, le=2**40)]
    top1: Share
    top1_ci: Shares
    top5: Share | None = None
    labels: Annotated[list[Text], Field(min_length=1)]
    predictions: list[Count]
    truth: list[Count]
    per_class: dict[Text, Scores]
    confusion: list[list[Count]] | None = None
    auc: Share | None = None
    temperature: Temperature | None = None
    calibration: Calibration | None = None
    calibration_raw: Calibration | None = None
    roc: dict[Text, Annotated[list[Shares], Field(max_length=1000)]] | None = None
    mistakes: Annotated[list[Mistake], Field(max_length=100)] | None = None
    members: dict[Name, Share] | None = None
    best_member: Name | None = None
    baseline: Key | None = None
    build_key: Text | None = None
    baseline_key: Text | None = None
    agreement: Share | None = None
    drop_points: Points | None = None
    drop_ci_points: PointsPair | None = None
    drop_lower_points: Points | None = None
    drop_upper_points: Points | None = None
    drop: Drop | None = None
    class_drops: dict[Text, ClassDrop] | None = None
    measured_on: Machine | None = None

    @model_validator(mode="after")
    def _fit(self) -> AccuracyRecord:
        classes = len(self.labels)
        for answers in (self.predictions, self.truth):
            if len(answers) != self.n or max(answers) >= classes:
                raise ValueError("its answers do not fit its pictures and classes")
        if self.confusion is not None and [len(row) for row in self.confusion] != [classes] * classes:
            raise ValueError("its confusion matrix does not fit its classes")
        if any(max(one.truth, one.answer) >= classes or one.index >= self.n for one in self.mistakes or ()):
            raise ValueError("its mistakes do not fit its pictures and classes")
        if len(self.per_class) > classes or len(self.class_drops or ()) > classes:
            raise ValueError("its scores by class do not fit its classes")
        return self


class GradCamRecord(Record):
    """``gradcam.json``: which picture of the test set, and which answer, each map of ``gradcam.npy`` is of."""

    fix: ClassVar[str] = "delete it and measure again: edgeopt bench"

    class Map(Part):
        """One of them."""

        index: Count
        answer: Count

    pictures: Annotated[list[Map], Field(max_length=1000)]
