"""What every record in a run folder must hold: one schema a kind, checked once, when the record is read.

A run folder may come from a stranger, so that nothing in a record is taken on trust: numbers have bounds, names fit a
folder, paths stay inside the run. Fields that are not listed here may be there and are not read. Code that got its
record from :func:`read` or :func:`read_checked` may index what is required and need not look at types again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from edgeopt.config import Target
from edgeopt.errors import RunError
from edgeopt.files import MAX_JSON_BYTES, fits_a_folder, is_plain, read_json, read_text
from edgeopt.schemes import SCHEMES

SCHEMA = 1
#: The edgeopt that reads each schema older than :data:`SCHEMA`; none was ever released.
OLDER_SCHEMAS: Mapping[int, str] = {}


def _folder_name(value: str) -> str:
    if not fits_a_folder(value):
        raise ValueError("cannot name a folder")
    return value


def _inside(value: str) -> str:
    parts = PurePosixPath(value)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or not is_plain(value) or "\\" in value:
        raise ValueError("is not a path inside the run folder")
    return value


def _device_command(value: str) -> str:
    target = value.removeprefix("edgeopt build --target ")
    if value and (target == value or not fits_a_folder(target) or _SHELL & set(target)):
        raise ValueError("is no command of edgeopt's")
    return value


def _known_scheme(value: str) -> str:
    if value not in SCHEMES:
        raise ValueError(f"is none of the schemes {', '.join(SCHEMES)}")
    return value


_SHELL = frozenset("$`;&")  # beside what no folder's name may hold

Text = Annotated[str, StringConstraints(max_length=65_536)]
Name = Annotated[str, AfterValidator(_folder_name)]
Inside = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_inside)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SchemeName = Annotated[str, AfterValidator(_known_scheme)]
#: An engine's folder, ``target/variant``.
Key = Annotated[str, StringConstraints(max_length=300), AfterValidator(_inside)]
#: What a reader is told to type must be our own words, not a stranger's.
DeviceCommand = Annotated[str, AfterValidator(_device_command)]
Share = Annotated[float, Field(ge=0, le=1)]
Points = Annotated[float, Field(ge=-100, le=100)]
Positive = Annotated[float, Field(ge=1e-9, le=1e12)]  # milliseconds, ratios, pictures a second
Nats = Annotated[float, Field(ge=-1e6, le=1e6)]
NatsPair = Annotated[list[Nats], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]
Shares = Annotated[list[Share], Field(min_length=2, max_length=2)]
PointsPair = Annotated[list[Points], Field(min_length=2, max_length=2)]
Pair = Annotated[list[Positive], Field(min_length=2, max_length=2)]


class Record(BaseModel):
    """A record: unknown fields are left alone, types are exact, numbers finite."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False, defer_build=True)
    fix: ClassVar[str] = "get the folder again from its source"
    limit: ClassVar[int] = MAX_JSON_BYTES

    schema_: Literal[1] = Field(alias="schema")


class _Part(BaseModel):
    """An object inside a record."""

    model_config = Record.model_config


class RunInfo(Record):
    """``run.json``."""

    id: Name
    created: Text
    fingerprint: Text
    data_root: Text | None = None
    data: dict[str, Any] = {}
    machine: Text | None = None
    host: Text | None = None


class Output(_Part):
    """A file that a stage made."""

    path: Inside
    sha256: Hash


class StageRecord(Record):
    """``host/<variant>/stage.json``, and what all commit records share."""

    fix: ClassVar[str] = "get the run again from its source, or remove the variant with edgeopt rm"

    class Metrics(_Part):
        """Of the variant's model."""

        val_top1: Share | None = None
        parameters: Count | None = None
        macs: Count | None = None
        temperature: Temperature | None = None

    class Fold(_Part):
        """Which part of train the model was not trained on."""

        fold: Count
        of: Count

    class Ingredients(_Part):
        """The models it was kept of, and what each scores on val."""

        val_scores: dict[Name, Share]

    class CrossValidation(_Part):
        """Figures of the folds."""

        fold_top1: list[Share]
        mean_top1: Share
        spread_top1: Share

    class Pruning(_Part):
        """What was cut: layers' widths before and after, and why others kept theirs."""

        widths: dict[Text, Annotated[list[Count], Field(min_length=2, max_length=2)]] = {}
        untouched: dict[Text, Text] = {}

    class Ladder(_Part):
        """The ways to int8 that were tried, cheapest first."""

        class Rung(_Part):
            """One of them."""

            class Loss(_Part):
                """A paired difference of the mean log-loss, nats."""

                mean: Nats
                ci: NatsPair

            class Drop(_Part):
                """Of val top-1, against the float model."""

                drop_points: Points
                lower_points: Points
                upper_points: Points
                n: Count

            class Layer(_Part):
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

        class TimedLayer(_Part):
            """What a layer's quantizers add to the loss, and what leaving it in float adds to a call, measured."""

            layer: Text
            loss_increase: Nats
            cost_ms: Annotated[float, Field(ge=-1e9, le=1e9)]

        max_drop_points: Points
        reference: Name
        chosen: Name
        stopped: Text
        verdict: Literal["met", "undecided", "missed"]
        pictures_to_decide: Count | None = None
        timed_on: Name | None = None
        layers: list[TimedLayer] | None = None
        rungs: Annotated[list[Rung], Field(min_length=1, max_length=1000)]

    class LatencySearch(_Part):
        """What was timed before training, and what was planned of it. Shares are of the unpruned engine's latency."""

        class Measured(_Part):
            """An engine."""

            p50_ms: Positive
            share_of_unpruned: Positive
            share_of_unpruned_ci: Pair | None = None

        class Plan(_Part):
            """Widths, or blocks that go, by one way of choosing them; not measured where another device is meant."""

            way: Text
            met: bool
            p50_ms: Positive | None = None
            share_of_unpruned: Positive | None = None
            share_of_unpruned_ci: Pair | None = None
            predicted_share: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
            kept_importance: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
            untrained_val_loss: Nats | None = None

        class Goal(_Part):
            """What was asked for."""

            limit_share: Positive

        class TableError(_Part):
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

    created: Text
    key: Text
    outputs: dict[Text, Output]
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


class LatencyVerdict(Record):
    """``host/<int8 variant>/latency/verdict.json``: what its engine measured against the latency asked for."""

    fix: ClassVar[str] = "delete it, and measure again with the same edgeopt compress"

    created: Text
    key: Text
    outputs: dict[Text, Output]
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


class CandidatesRecord(Record):
    """``host/<variant>/candidates-<target>/candidates.json``: networks for another device to time."""

    fix: ClassVar[str] = "make them again where the pictures are: edgeopt compress --int8 --latency-candidates --force"

    class Candidate(_Part):
        """How many units each group loses, or the input (height, width) of the whole network."""

        cuts: Annotated[list[Count], Field(max_length=100_000)] | None
        size: Annotated[list[Annotated[int, Field(ge=1, le=2048)]], Field(min_length=2, max_length=2)] | None

    class Group(_Part):
        """Channels that go together, and how many units there are of them."""

        name: Text
        units: Count

    created: Text
    name: Name
    key: Text
    outputs: dict[Text, Output]
    variant: Name
    target: Name
    scheme: SchemeName
    profile: Target
    layers: list[Text]
    groups: list[Group]
    candidates: Annotated[dict[Name, Candidate], Field(min_length=2, max_length=1000)]

    @model_validator(mode="after")
    def _fit(self) -> CandidatesRecord:
        if set(self.candidates) != set(self.outputs):
            raise ValueError("its candidates are not its files")
        if self.profile.name != self.target:  # the name of a folder that is written to
            raise ValueError("its profile is of another target")
        if any((one.cuts is None) == (one.size is None) for one in self.candidates.values()):
            raise ValueError("a candidate has either cuts or a size")
        return self


class CandidateTimes(Record):
    """``device/<target>/candidates-<variant>/times.json``: what a device measured of them."""

    fix: ClassVar[str] = "measure again on the device: edgeopt bench --latency-candidates"

    class Engine(_Part):
        """The median of a call, as a share of the unpruned engine's as well, and the layers' shares of it."""

        p50_ms: Positive
        share_of_unpruned: Positive
        share_of_unpruned_ci: Pair | None
        layers: dict[Text, Share]

    created: Text
    name: Name
    key: Text
    outputs: dict[Text, Output]
    variant: Name
    target: Name
    candidates: Text
    engines: Annotated[dict[Name, Engine], Field(min_length=2, max_length=1000)]
    measured_on: dict[Text, Any]


class EnsembleRecord(Record):
    """``host/<name>/ensemble.json``: variants that answer together, and how."""

    fix: ClassVar[str] = "get the run again from its source, or remove the ensemble with edgeopt rm"

    class Member(_Part):
        """A variant of the run, as it was."""

        variant: Name
        model_sha256: Hash
        temperature: Temperature
        val_top1: Share | None = None

    class Metrics(_Part):
        """Of its answers on val."""

        val_top1: Share | None = None
        temperature: Temperature | None = None

    created: Text
    key: Text
    outputs: dict[Text, Output]
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


def _what_a_build_needs(outputs: dict[str, Output]) -> dict[str, Output]:
    if not {"onnx", "logits"} <= set(outputs):
        raise ValueError("the ONNX and the model's answers are needed")
    return outputs


class ExportRecord(Record):
    """``host/<variant>/export/parity.json``."""

    fix: ClassVar[str] = "edgeopt export --force, where the run was made"

    created: Text
    key: Text
    versions: dict[Text, Text] | None = None
    outputs: Annotated[dict[Text, Output], AfterValidator(_what_a_build_needs)]
    calibration_folder: Inside
    calibration_set: Name
    noise_floor: Annotated[float, Field(ge=0, le=1e6)] | None = None


class FusionRecord(_Part):
    """``fusion.json``, and the same in ``build.json``."""

    fix: ClassVar[str] = "build the engine again with --force"
    limit: ClassVar[int] = MAX_JSON_BYTES

    compute_layers: Count | None = None
    int8_layers: Count | None = None
    int8_share: Share | None = None
    int8_share_macs: Share | None = None
    float_layers: list[Text] | None = None
    float_shares_macs: list[Share] | None = None
    float_by_request: list[Text] | None = None
    source: Text | None = None


class LayerTimesRecord(Record):
    """``layer_times.json``, of one engine."""

    fix: ClassVar[str] = "build the engine again with --force"

    class Layer(_Part):
        """An executed layer."""

        name: Text
        kind: Text
        ms: Annotated[float, Field(ge=0, le=1e12)]

    layers: Annotated[list[Layer], Field(max_length=100_000)]
    runs: Count
    batch: Count
    source: Text


class BuildRecord(Record):
    """``device/<target>/<variant>/build.json``."""

    fix: ClassVar[str] = "build the engine again with --force"

    class Parity(_Part):
        """How the engine answers, against the model it was made from."""

        ok: bool
        message: Text
        n: Count
        top1_agreement: Share
        parted: Text | None = None

    created: Text
    key: Text
    target: Name
    target_folder: Name | None = None
    variant: Name
    precision: Name
    scheme: SchemeName | None = None
    embedded_preprocessing: bool = False
    backend: Name
    profile: Target
    engine: Inside | None = None
    onnx_sha256: Hash | None = None
    size_bytes: Count | None = None
    runs_here: bool | None = None
    reason: Text | None = None
    device_command: DeviceCommand | None = None
    command: Text | None = None
    machine: Text | None = None
    host: Text | None = None
    versions: dict[Text, Text] | None = None
    parity: Parity | None = None
    fusion: FusionRecord | None = None
    outputs: dict[Text, Output]


class Machine(_Part):
    """What :func:`edgeopt.environment.record` says of a machine."""

    class Cpu(_Part):
        """Its processor."""

        name: Text | None = None
        machine: Text | None = None
        flags: list[Text] | None = None
        cores: Count | None = None

    class Gpu(_Part):
        """One of its graphics cards."""

        name: Text | None = None

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

    class Ratio(_Part):
        """How many times as fast the engine is as another."""

        baseline: Key
        kind: Literal["original", "compiled", "float"]
        speedup: Positive
        speedup_ci: Pair | None = None
        quiet: bool | None = None

    class EndToEnd(_Part):
        """From an encoded picture to the answer, ms a picture."""

        decode_ms: Annotated[float, Field(ge=0, le=1e9)]
        preprocess_ms: Annotated[float, Field(ge=0, le=1e9)]
        infer_ms: Annotated[float, Field(ge=0, le=1e9)]
        pictures: Count

    class CrossCheck(_Part):
        """What the runtime's own tool measured."""

        tool: Text
        p50_ms: Positive
        edgeopt_p50_ms: Positive
        ratio: Positive
        ratio_ci: Pair | None = None
        agrees: bool | None = None

    class Search(_Part):
        """The setting with the most pictures a second."""

        class Setting(_Part):
            """Processes at once, and what they gave together."""

            batch: Count
            streams: Count
            threads: Count
            throughput_ips: Positive
            p50_ms: Positive
            p90_ms: Positive

        cap_ms: Positive | None = None
        best: Setting | None = None

    class Bench(_Part):
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


class AccuracyRecord(Record):
    """``accuracy.json``; :mod:`edgeopt.bench.records` says what the fields mean."""

    fix: ClassVar[str] = "delete it and measure again: edgeopt bench"
    limit: ClassVar[int] = 64 * 2**20  # two numbers a picture

    class Drop(_Part):
        """The paired comparison with the original."""

        detectable_points: Points | None = None
        lost: Count | None = None
        gained: Count | None = None
        mcnemar_p: Share | None = None

    class ClassDrop(_Part):
        """How many answers of a class changed, and what that says of its recall."""

        n: Annotated[int, Field(ge=1, le=2**40)]
        lost: Count
        gained: Count
        drop_points: Points
        lower_points: Points
        upper_points: Points
        mcnemar_p: Share

    class Scores(_Part):
        """Of one class."""

        n: Count | None = None
        correct: Count | None = None
        recall: Share | None = None
        precision: Share | None = None
        f1: Share | None = None
        auc: Share | None = None

    class Calibration(_Part):
        """How honest the confidences are."""

        class Bin(_Part):
            """Pictures of about the same confidence."""

            n: Count
            confidence: Share
            accuracy: Share

        ece: Share
        nll: Annotated[float, Field(ge=0, le=1e9)]
        bins: Annotated[list[Bin], Field(max_length=100)]

    class Mistake(_Part):
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

    class Map(_Part):
        """One of them."""

        index: Count
        answer: Count

    pictures: Annotated[list[Map], Field(max_length=1000)]


class LogLine(_Part):
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


class SplitRecord(Record):
    """``data/split.json``, as far as a report needs it; training reads it with a stricter eye."""

    limit: ClassVar[int] = 256 * 2**20  # a line a picture

    classes: list[Text]
    items: list[Annotated[tuple[Text, Count, Text, Literal["train", "val", "test"]], Field(strict=False)]]


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


class SetRecord(Record):
    """``data/sets/<key>/<name>.json``."""

    fix: ClassVar[str] = "make it where the pictures are: delete it and run edgeopt export, then copy the run again"
    limit: ClassVar[int] = 256 * 2**20  # a line a picture

    name: Name
    paths: list[Text]
    preprocess: dict[Text, Any]
    sha256: dict[Text, Hash]


#: What a stage's commit record must hold, by the record's file name.
COMMITS: Mapping[str, type[Record]] = {
    "stage.json": StageRecord,
    "ensemble.json": EnsembleRecord,
    "parity.json": ExportRecord,
    "build.json": BuildRecord,
    "verdict.json": LatencyVerdict,
    "candidates.json": CandidatesRecord,
    "times.json": CandidateTimes,
}


def read(kind: type[Record] | type[FusionRecord], path: Path) -> dict[str, Any]:
    """The record in ``path``, as it is there; raises RunError, in one line, when it is not of its ``kind``."""
    values = read_json(path, limit=kind.limit)
    check(kind, values, path)
    return values


def check(kind: type[Record] | type[FusionRecord], values: Mapping[str, Any], path: Path) -> None:
    """Raise RunError, in one line, when ``values`` is no record of its ``kind``; ``path`` is where it was read."""
    if "schema_" in kind.model_fields:
        _check_schema(values.get("schema"), path)
    try:
        kind.model_validate(values)
    except ValidationError as error:
        raise RunError(f"{path} is damaged: {_first(error)}", fix=kind.fix) from None


def read_labels(path: Path) -> tuple[str, ...]:
    """The class names in ``labels.txt``, in the order of the logits; raises RunError."""
    names = tuple(read_text(path).removesuffix("\n").split("\n"))
    odd = next((name for name in names if not is_plain(name)), None)
    if odd is not None:
        raise RunError(f"{path} is damaged: {odd[:60]!r} is no class name", fix=Record.fix)
    return names


def _check_schema(found: Any, path: Path) -> None:
    if found == SCHEMA and type(found) is int:
        return
    shown = repr(found)[:40]
    if type(found) is int and found > SCHEMA:
        raise RunError(
            f"{path} has schema {shown}; this edgeopt reads schema {SCHEMA}", fix="pip install --upgrade edgeopt"
        )
    if type(found) is int and found in OLDER_SCHEMAS:
        raise RunError(
            f"{path} has schema {shown}, of an older edgeopt", fix=f'pip install "edgeopt{OLDER_SCHEMAS[found]}"'
        )
    if found is None:
        raise RunError(f"{path} is damaged: it states no schema", fix=Record.fix)
    raise RunError(f"{path} has schema {shown}, which no edgeopt ever wrote", fix=Record.fix)


def _first(error: ValidationError) -> str:
    """The first problem, with what was found; texts as Python writes them, so that no control character is printed."""
    found = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in found["loc"])[:100]
    message = found["msg"].removeprefix("Value error, ")
    shown = "" if found["type"] == "missing" or isinstance(found["input"], (dict, list, BaseModel)) else found["input"]
    got = f", got {shown!r:.60}" if shown != "" else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place!r}: {message[:1].lower()}{message[1:200]}{got}{more}" if place else f"{message[:200]}{more}"
