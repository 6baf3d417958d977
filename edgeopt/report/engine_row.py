"""One engine as a report has it: everything that was measured of it, its mistakes and what it answers otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from edgeopt.config import Budget

Pair = tuple[float, float]


@dataclass(frozen=True)
class Mistake:
    """A wrong answer with its picture; ``picture`` and ``evidence`` (Grad-CAM over it) are data URIs, or empty."""

    path: str
    truth: str
    answer: str
    probability: float
    picture: str = ""
    evidence: str = ""


@dataclass(frozen=True)
class Change:
    """A picture answered otherwise than by the original; ``kind`` is lost, gained or other, ``total`` how many such."""

    kind: str
    total: int
    path: str
    truth: str
    before: str
    after: str
    picture: str = ""  # a data URI, or empty


@dataclass(frozen=True)
class EngineRow:
    """One engine, as in ``report.json``. What was not measured is None, never estimated.

    ``top1`` and its interval are fractions; ``*_points`` percentage points; ``speedup`` is how many times as fast as
    ``baseline`` (a key) it is, windows paired; ``float_speedup`` the same against ``float_baseline``, the fastest other
    precision of the same target, and ``fp32_speedup`` against float32 of that target, where that is another.
    """

    key: str  # target/variant: its folder under device/
    target: str
    variant: str
    backend: str
    precision: str
    scheme: str | None = None
    title: str = ""
    machine: str | None = None  # the CPU (or board) it was measured on
    measured_on: str | None = None  # that machine's id
    top1: float | None = None
    top1_ci: Pair | None = None
    top5: float | None = None  # None with five classes or fewer
    macro_precision: float | None = None  # means of the classes that have test pictures
    macro_recall: float | None = None
    macro_f1: float | None = None
    pictures: int | None = None
    simulated_top1: float | None = None  # of the same int8 model in torch
    drop_points: float | None = None
    drop_ci_points: Pair | None = None  # Tango's
    drop_bootstrap_points: Pair | None = None  # of the same pairs, resampled
    drop_lower_points: float | None = None
    drop_upper_points: float | None = None
    detectable_points: float | None = None
    lost: int | None = None
    gained: int | None = None
    mcnemar_p: float | None = None
    agreement: float | None = None
    test_set: str | None = None  # equal where the same pictures were judged, in the same order
    wrong: tuple[int, ...] = ()  # of those, by index
    auc: float | None = None  # area under ROC, one class against the rest, mean of the classes
    temperature: float | None = None
    ece: float | None = None  # expected calibration error with the temperature, and without
    ece_raw: float | None = None
    bins: tuple[tuple[int, float, float], ...] = ()  # reliability: pictures, mean confidence, share right
    roc: Mapping[str, Any] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    changes: tuple[Change, ...] = ()
    p50_ms: float | None = None
    p50_ci_ms: Pair | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    p99_ci_ms: Pair | None = None
    device_p50_ms: float | None = None  # of p50_ms, what a GPU's kernels take, by its own clock
    throughput_ips: float | None = None
    throughput_ci_ips: Pair | None = None
    speedup: float | None = None
    speedup_ci: Pair | None = None
    speedup_quiet: bool | None = None  # False when other work on the machine may have bent the ratio
    speedup_starts: Pair | None = None  # least and most of a start of the processes, where these differ beyond chance
    baseline: str | None = None
    compiled_speedup: float | None = None
    compiled_speedup_ci: Pair | None = None
    compiled_speedup_quiet: bool | None = None
    compiled_speedup_starts: Pair | None = None
    compiled_baseline: str | None = None
    best_throughput: Mapping[str, Any] = field(default_factory=dict)  # batch, streams, threads, throughput_ips, p90_ms
    float_speedup: float | None = None
    float_speedup_ci: Pair | None = None
    float_speedup_quiet: bool | None = None
    float_speedup_starts: Pair | None = None
    float_baseline: str | None = None
    fp32_speedup: float | None = None
    fp32_speedup_ci: Pair | None = None
    fp32_speedup_quiet: bool | None = None
    fp32_speedup_starts: Pair | None = None
    fp32_baseline: str | None = None
    baseline_kind: str | None = None  # of ``baseline``: original or float
    size_bytes: int | None = None
    peak_memory_bytes: int | None = None
    load_s: float | None = None
    cold_start_s: float | None = None  # from starting a process to its first answer
    cpu_ms: float | None = None  # CPU time of a call, all threads
    cross_check: Mapping[str, Any] = field(default_factory=dict)  # tool, p50_ms, ratio: edgeopt's over the tool's
    end_to_end: Mapping[str, Any] = field(default_factory=dict)  # ms a picture: decode_ms, preprocess_ms, infer_ms
    macs: int | None = None
    params: int | None = None
    compute_layers: int | None = None
    int8_layers: int | None = None
    int8_share: float | None = None
    int8_share_macs: float | None = None
    float_layers: tuple[str, ...] = ()
    fusion_source: str = ""
    slowest_layers: tuple[tuple[str, str, float], ...] = ()  # name, kind, milliseconds, of the runtime's own profile
    layers_ms: float | None = None  # all layers of that profile together
    batch: int | None = None
    threads: int | None = None
    bench_seconds: float | None = None  # that all engines of the session were timed for, together
    bench_starts: int | None = None  # of new processes for all, among which its windows were divided
    bench_id: str | None = None  # engines with the same were interleaved; others' milliseconds do not compare
    stable: bool | None = None
    other_load_cores: float | None = None
    fits_target: bool | None = None  # measured on the device its target describes
    elsewhere: bool = False  # only its device can run it: it is not here, or not for this machine
    comparable: bool = True  # it goes back to the original of this report, not to another trained model of the run
    reason: str = ""  # why there is no engine, or it was not measured
    device_command: str = ""  # what to type on the device instead
    flags: tuple[str, ...] = ()  # what a reader must not miss
    verdict: str | None = None  # of the budget: met, missed, unstable, undecided
    per_class: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    class_drops: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # see metrics.class_drops
    confusion: tuple[tuple[int, ...], ...] = ()
    window_medians_ms: tuple[float, ...] = ()
    windows_by_start: tuple[int, ...] = ()
    density: tuple[Pair, ...] = ()  # of single calls: (ms, share of the highest), evenly spaced in the logarithm
    profile_budget: Budget = field(default_factory=lambda: Budget.model_validate({}))

    def __post_init__(self) -> None:
        """Records may come from a stranger: raise TypeError for a number that is none."""
        for one in fields(self):
            value, kind = getattr(self, one.name), str(one.type)
            allowed = bool if kind.startswith("bool") else (int, float) if kind.startswith(("float", "int")) else object
            if value is not None and not isinstance(value, allowed):
                raise TypeError(f"{one.name} should be a number, not {value!r:.60}")

    @property
    def measured(self) -> bool:
        """Whether anything at all was measured."""
        return self.top1 is not None or self.p50_ms is not None

    @property
    def compressed(self) -> bool:
        """Whether it is a result (int8, or another model than the original) and not a baseline."""
        return self.precision == "int8"

    def to_json(self) -> dict[str, Any]:
        """The row of ``report.json``."""
        left_out = {
            "profile_budget",
            "bins",
            "roc",
            "mistakes",
            "changes",
            "density",
        }  # accuracy.json has the latter
        if len(self.confusion) > 100:  # millions of zeros; accuracy.json has every answer
            left_out.add("confusion")
        return {one.name: plain(getattr(self, one.name)) for one in fields(self) if one.name not in left_out}


def plain(value: Any) -> Any:
    """``value`` as JSON has it: tuples are lists."""
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return value
