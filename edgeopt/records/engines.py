"""Records of what a device builds from and has built: exports, engines, what runs in int8, candidates to time."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

from edgeopt.config import Target
from edgeopt.files import MAX_JSON_BYTES
from edgeopt.records.fields import (
    Count,
    DeviceCommand,
    Hash,
    Inside,
    Name,
    Pair,
    Part,
    Positive,
    Record,
    SchemeName,
    Share,
    Text,
)
from edgeopt.records.stages import CommitRecord, Output


def _what_a_build_needs(outputs: dict[str, Output]) -> dict[str, Output]:
    if not {"onnx", "logits"} <= set(outputs):
        raise ValueError("the ONNX and the model's answers are needed")
    return outputs


#: Mean |difference| of logits over their spread.
Noise = Annotated[float, Field(ge=0, le=1e6)]


class ExportRecord(CommitRecord):
    """``host/<variant>/export/parity.json``."""

    fix: ClassVar[str] = "edgeopt export --force, where the run was made"

    versions: dict[Text, Text] | None = None
    outputs: Annotated[dict[Text, Output], AfterValidator(_what_a_build_needs)]
    calibration_folder: Inside
    calibration_set: Name
    noise_floor: Noise | None = None
    half_noise: dict[Text, Noise] | None = None
    half_problem: Text | None = None
    merged: bool | None = None


class FusionRecord(Part):
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

    class Layer(Part):
        """An executed layer."""

        name: Text
        kind: Text
        ms: Annotated[float, Field(ge=0, le=1e12)]

    layers: Annotated[list[Layer], Field(max_length=100_000)]
    runs: Count
    batch: Count
    source: Text


class BuildRecord(CommitRecord):
    """``device/<target>/<variant>/build.json``."""

    fix: ClassVar[str] = "build the engine again with --force"

    class Parity(Part):
        """How the engine answers, against the model it was made from."""

        ok: bool
        message: Text
        n: Count
        top1_agreement: Share
        parted: Text | None = None

    target: Name
    target_folder: Name | None = None
    variant: Name
    precision: Name
    scheme: SchemeName | None = None
    embedded_preprocessing: bool = False
    backend: Name
    backend_version: Text | None = None
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


class CandidatesRecord(CommitRecord):
    """``host/<variant>/candidates-<target>/candidates.json``: networks for another device to time."""

    fix: ClassVar[str] = "make them again where the pictures are: edgeopt compress --int8 --latency-candidates --force"

    class Candidate(Part):
        """How many units each group loses, or the input (height, width) of the whole network."""

        cuts: Annotated[list[Count], Field(max_length=100_000)] | None
        size: Annotated[list[Annotated[int, Field(ge=1, le=2048)]], Field(min_length=2, max_length=2)] | None

    class Group(Part):
        """Channels that go together, and how many units there are of them."""

        name: Text
        units: Count

    name: Name
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


class CandidateTimes(CommitRecord):
    """``device/<target>/candidates-<variant>/times.json``: what a device measured of them."""

    fix: ClassVar[str] = "measure again on the device: edgeopt bench --latency-candidates"

    class Engine(Part):
        """The median of a call, as a share of the unpruned engine's as well, and the layers' shares of it."""

        p50_ms: Positive
        share_of_unpruned: Positive
        share_of_unpruned_ci: Pair | None
        layers: dict[Text, Share]

    name: Name
    variant: Name
    target: Name
    candidates: Text
    engines: Annotated[dict[Name, Engine], Field(min_length=2, max_length=1000)]
    measured_on: dict[Text, Any]
