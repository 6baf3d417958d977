"""Pruning to a measured latency: the goal, the table, the choice of widths, slices of a file, and the whole way."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import paint_folder
from planted import SEARCH, plant
from small_run import write_small_run
from torch import nn

from edgeopt import CompressConfig, DataConfig, ModelConfig, Run, TrainConfig, api, cli, load_target, records
from edgeopt.bench import BenchResult, EngineResult, EngineSpec
from edgeopt.bench.bed import UNPRUNED, Share, Timing
from edgeopt.compress.channels import Group
from edgeopt.compress.depth import BlockCost
from edgeopt.compress.knapsack import global_ratio, knapsack
from edgeopt.compress.latency import search as latency_search
from edgeopt.compress.latency.clocks import Clock, Elsewhere, candidates_of, shape_of
from edgeopt.compress.latency.search import Judge, Search, parts_of, search
from edgeopt.compress.latency.slices import Slicer, quantized_like, resliced
from edgeopt.compress.latency.table import Timed, fit_table, held_out_error
from edgeopt.compress.prune import Prunable, history_of, prunable, replay
from edgeopt.compress.quantize import quantize
from edgeopt.compress.space import Cuts, WidthSpace
from edgeopt.config import validate
from edgeopt.errors import BackendError, ConfigError, EdgeoptError, MissingStageError, ModelError
from edgeopt.export.qdq import export_qdq
from edgeopt.files import write_json
from edgeopt.latency_goal import LatencyGoal, latency_goal
from edgeopt.metrics import Interval, seconds_to_decide
from edgeopt.preprocess import PreprocessSpec
from edgeopt.registry import load_backend
from edgeopt.report.latencies import _searched, latencies, rivals
from edgeopt.report.sections.latency import render
from edgeopt.report.table import assemble
from edgeopt.schemes import get_scheme
from edgeopt.stages import latency, latency_networks, latency_verdict
from edgeopt.stages.passes import training_recipe
from edgeopt.stages.recovery import epochs_of
from edgeopt.stages.timing import bed_of
from edgeopt.stages.training import TrainingPlan
from edgeopt.stages.variants import Variant
from tests.report_fixture import write_run
from tests.tiny_torch import PlainNet


@pytest.mark.parametrize(
    ("text", "goal", "limit"),
    [
        ("4ms", LatencyGoal(ms=4.0), 0.5),
        ("2.5 ms", LatencyGoal(ms=2.5), 2.5 / 8),
        ("0.6x", LatencyGoal(share=0.6), 0.6),
        ("60%", LatencyGoal(share=0.6), 0.6),
    ],
)
def test_a_latency_is_milliseconds_or_a_share_of_the_unpruned_engine(
    text: str, goal: LatencyGoal, limit: float
) -> None:
    assert latency_goal(text) == goal
    assert goal.limit_of(present_ms=8.0) == pytest.approx(limit)


@pytest.mark.parametrize("text", ["4", "0ms", "-1ms", "1.5x", "100%", "fast", "ms"])
def test_another_latency_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="latency: a latency is milliseconds such as 4ms"):
        validate(CompressConfig, {"latency": text}, where="compress options")


def test_two_goals_or_no_int8_engine_to_time_are_refused() -> None:
    with pytest.raises(ConfigError, match="prune and latency both say how much to prune"):
        validate(CompressConfig, {"latency": "4ms", "prune": 0.3}, where="compress options")
    with pytest.raises(ConfigError, match="latency is that of an int8 engine"):
        validate(CompressConfig, {"latency": "4ms", "int8": False}, where="compress options")


LAYERS = ("a", "b", "c")
MACS = {"a": 10, "b": 20, "c": 30}


def _law(shares: np.ndarray) -> dict[str, float]:
    """What layers take, as shares of the unpruned engine: fixed costs and products of widths."""
    return {
        name: 0.05 + weight * float(i * o)
        for (i, o), (name, weight) in zip(shares, {"a": 0.1, "b": 0.2, "c": 0.3}.items(), strict=True)
    }


def _engines(count: int, constant: float = 0.25) -> list[Timed]:
    rng = np.random.default_rng(1)
    engines = []
    for _ in range(count):
        shares = rng.uniform(0.3, 1.0, (len(LAYERS), 2))
        parts = _law(shares)
        engines.append(Timed(shares, sum(parts.values()) + constant, parts))
    return engines


def test_the_table_finds_the_layers_law_and_the_networks_constant() -> None:
    engines = _engines(16)
    table = fit_table(engines[:12], LAYERS, MACS)
    for engine in engines[12:]:
        assert table.predict(engine.shares) == pytest.approx(engine.whole, rel=1e-6)
    error = held_out_error(engines, LAYERS, MACS)
    assert error.engines == 4
    assert error.largest < 1e-6


def test_the_error_of_the_table_is_told_by_engines_it_was_not_made_from() -> None:
    """Every fourth takes twice what the law says of its layers, which a table made from it too would know a part of."""
    engines = _engines(16)
    for index in range(3, 16, 4):
        twice = {name: 2 * part for name, part in engines[index].layers.items()}
        engines[index] = Timed(engines[index].shares, sum(twice.values()) + 0.25, twice)
    missing = [sum(one.layers.values()) / 2 / one.whole for one in engines[3::4]]
    error = held_out_error(engines, LAYERS, MACS)
    assert error.engines == 4
    assert error.median == pytest.approx(np.median(missing), rel=1e-6)
    assert error.largest == pytest.approx(max(missing), rel=1e-6)


def test_a_network_of_few_widths_has_a_table_and_its_error_too() -> None:
    """A layer of 16 channels that loses 8 or none, on kernels that like eights: two networks are all there are."""
    assert len(WidthSpace([_group("only", 1.0, units=16)], ("only",)).survey(24)) == 2
    for count in (2, 3):
        error = held_out_error(_engines(count), LAYERS, MACS)
        assert error.engines == 1
        assert np.isfinite(error.largest)


def test_the_table_never_says_that_a_wider_network_is_faster() -> None:
    rng = np.random.default_rng(2)
    noisy = [Timed(one.shares, one.whole, {k: v * rng.uniform(0.5, 1.5) for k, v in one.layers.items()})
             for one in _engines(12)]  # fmt: skip
    table = fit_table(noisy, LAYERS, MACS)
    narrow = np.full((3, 2), 0.4)
    for layer in range(3):
        for side in range(2):
            wide = narrow.copy()
            wide[layer, side] = 0.9
            assert table.predict(wide) >= table.predict(narrow)


def _group(name: str, mean: float, *, units: int = 32) -> Group:
    scores = torch.linspace(0.5, 1.5, units)
    return Group(
        root=nn.Conv2d(1, 1, 1),
        name=name,
        kind="one",
        scores=scores,
        repeats=1,
        step=8,
        most=3 * units // 4,
        touched=((name, True, 1.0),),
        order=torch.argsort(scores),
        mean=mean,
    )


def test_the_knapsack_takes_what_costs_least_importance_and_stays_under_the_limit() -> None:
    # Equal latencies, but a channel of "dear" matters ten times as much as one of "cheap".
    space = WidthSpace([_group("dear", 10.0), _group("cheap", 1.0)], ("dear", "cheap"))

    def predict(shares: np.ndarray) -> float:
        return float(shares[:, 1].sum()) / 2

    cuts = knapsack(space, predict, 0.7)
    assert cuts == (0, 24)
    assert predict(space.shares(cuts)) <= 0.7
    alike = global_ratio(space, predict, 0.7)
    assert alike is not None
    assert min(alike) > 0
    assert space.kept(cuts) > space.kept(alike)
    assert knapsack(space, predict, 0.2) is None  # a quarter of each group always stays
    assert global_ratio(space, predict, 0.2) is None


def test_the_knapsack_gives_back_what_turns_out_to_fit() -> None:
    """The first cut is cheap and saves little; the one that is needed beside it saves more than is missing."""
    space = WidthSpace([_group("dear", 10.0), _group("cheap", 1.0)], ("dear", "cheap"))
    takes = {"dear": {32: 0.6, 24: 0.5, 16: 0.5, 8: 0.2}, "cheap": {32: 0.4, 24: 0.35, 16: 0.35, 8: 0.35}}

    def predict(shares: np.ndarray) -> float:
        left = dict(zip(space.layers, (32 * shares[:, 1]).round().astype(int), strict=True))
        return sum(takes[name][width] for name, width in left.items())

    assert knapsack(space, predict, 0.62) == (24, 0)


def test_the_survey_spans_from_the_whole_network_to_the_smallest() -> None:
    space = WidthSpace([_group("dear", 10.0), _group("cheap", 1.0)], ("dear", "cheap"))
    survey = space.survey(12)
    assert survey[0] == space.full
    assert space.smallest in survey
    assert len(set(survey)) == len(survey)
    # A width that is no multiple, as those of squeeze-and-excitation often are, is whole as it is.
    odd = WidthSpace([_group("odd", 1.0, units=20), _group("even", 1.0)], ("odd", "even"))
    assert odd.survey(12)[0] == odd.full == (0, 0)
    assert {width for width, _ in odd.survey(12)} == {0, 4, 12}
    assert any(first != second for first, second in survey)  # layers of their own, not one ratio throughout


@dataclass(frozen=True)
class _Board:
    """A device that timed sixteen candidates of a small network, where latency is 0.2 plus what the layers take."""

    found: Prunable
    space: WidthSpace
    cuts: dict[str, Cuts]

    @classmethod
    def planted(cls) -> _Board:
        torch.manual_seed(0)
        found = prunable(PlainNet(4), example=torch.zeros(1, 3, 32, 32), importance="l2", round_to=4)
        space = WidthSpace(found.groups, tuple(found.costs))
        survey = space.survey(16)
        return cls(found, space, {f"candidate-{i}" if any(one) else UNPRUNED: one for i, one in enumerate(survey)})

    def took(self, one: Cuts) -> Timing:
        each = 0.8 * self.space.shares(one).prod(axis=1) / len(self.space.layers)
        parts = dict(zip(self.space.layers, each, strict=True))
        whole = 0.2 + sum(parts.values())
        share = Share(whole, 0.99 * whole, 1.01 * whole, 5 * whole)
        return Timing(share, {name: float(part) / whole for name, part in parts.items()})

    def clock(self, timings: Mapping[str, Timing] | None = None) -> Elsewhere:
        known = timings if timings is not None else {name: self.took(one) for name, one in self.cuts.items()}
        return Elsewhere(shape_of(self.space), self.space.layers, self.cuts, {}, known)

    def searched(
        self, clock: Clock, *, share: float = 0.6, judge: Judge = lambda _: {"loss": 1.0, "top1": 0.5}, **more: Any
    ) -> dict[str, Any]:
        return search(self.found, Search(clock, LatencyGoal(share=share), **more), judge=judge, say=lambda _: None)


@dataclass(frozen=True)
class _Here(Elsewhere):
    """The same device, asked for plans too: whole blocks gone leave it ``1 - 0.15`` of its time for each of them."""

    measures: ClassVar[bool] = True

    board: _Board
    longer: float = 1.0  # than when measured first: times a plan that is measured again
    first: dict[str, Share] = field(default_factory=dict)
    again_of: list[str] = field(default_factory=list)

    def again(self, name: str) -> Share:
        self.again_of.append(name)
        one = self.first[name]
        return Share(*(self.longer * value for value in (one.value, one.low, one.high, one.p50_ms)))

    def whole(self, space: WidthSpace, name: str, history: list[Any]) -> Timing:
        if history[0][1] == "drop":
            share = 1 - 0.15 * len(history)
            timing = Timing(Share(share, 0.99 * share, 1.01 * share, 5 * share), {})
        else:
            gone = {name: len(channels) for name, _, channels in history}
            timing = self.board.took(tuple(gone.get(group.name, 0) // group.repeats for group in space.groups))
        self.first[name] = timing.share
        return timing


@pytest.fixture(scope="module")
def here() -> _Here:
    board = _Board.planted()
    elsewhere = board.clock()
    blocks = {f"block{number}.conv": 0.1 * number for number in (1, 2, 3)}  # of the profile alone
    whole = elsewhere.timings[UNPRUNED]
    timings = {**elsewhere.timings, UNPRUNED: replace(whole, layers={**whole.layers, **blocks})}
    return _Here(elsewhere.groups, elsewhere.layers, elsewhere.cuts, {}, timings, board)


def test_about_two_dozen_candidates_are_timed_the_whole_network_first(here: _Here) -> None:
    sizes = [PreprocessSpec(size=(side, side)) for side in (24, 16)]
    found = candidates_of(here.board.space, sizes)
    widths = [one for one in found.values() if one.spec is None]
    assert 20 <= len(widths) <= 26
    assert next(iter(found)) == UNPRUNED
    assert not found[UNPRUNED].history
    assert all(one.history for one in widths[1:])
    assert [(name, one.history) for name, one in found.items() if one.spec] == [("size-24x24", []), ("size-16x16", [])]


def test_the_plan_that_val_prefers_is_taken_of_widths_a_global_ratio_and_depth(here: _Here) -> None:
    blocks = [BlockCost(f"block{number}", loss=float(number)) for number in (1, 2, 3)]
    for preferred in ("knapsack", "global ratio", "depth"):
        asked: list[Any] = []

        def judge(history: list[Any], preferred: str = preferred, asked: list[Any] = asked) -> dict[str, float]:
            asked.append(history)
            way = "depth" if history[0][1] == "drop" else ("knapsack", "global ratio")[len(asked) - 1]
            return {"loss": 1.0 if way == preferred else 2.0, "top1": 0.5}

        found = here.board.searched(here, judge=judge, blocks=blocks)
        assert found["chosen"]["way"] == preferred
        assert len(asked) == 3, "of each way one: the slowest of those within the limit"
        assert list(dict.fromkeys(plan["way"] for plan in found["plans"])) == ["knapsack", "global ratio", "depth"]
        assert all(plan["met"] == (plan["share_of_unpruned_ci"][1] <= 0.6) for plan in found["plans"])
    # By the profile three blocks have to go; measured, that is enough, and two are not.
    depth = [plan for plan in found["plans"] if plan["way"] == "depth"]
    assert [(plan["dropped"], plan["met"]) for plan in depth] == [
        (["block1", "block2", "block3"], True),
        (["block1", "block2"], False),
    ]
    assert found["chosen"]["history"] == [[f"block{number}", "drop"] for number in (1, 2, 3)]


def test_a_plan_just_within_the_limit_must_hold_it_when_measured_as_in_the_end(here: _Here) -> None:
    chosen = {}
    for longer in (1.0, 1.08):
        clock = replace(here, longer=longer, first={}, again_of=[])
        found = here.board.searched(clock)
        chosen[longer] = found["chosen"]
        assert clock.again_of == [name for name, one in clock.first.items() if 0.95 * 0.6 <= one.high <= 0.6]
        assert len(clock.again_of) >= 2, "of both ways those near the limit, which they end with"
        assert chosen[longer]["met"]
        assert all(plan["met"] == (plan["share_of_unpruned_ci"][1] <= 0.6) for plan in found["plans"])
        shares = [plan["share_of_unpruned"] for plan in found["plans"]]
        firsts = [one.value * (longer if name in clock.again_of else 1) for name, one in clock.first.items()]
        assert shares == firsts, "told as it was measured in the end"
    # What only seemed to hold is cut further.
    assert chosen[1.08]["history"] != chosen[1.0]["history"]
    assert chosen[1.08]["kept_importance"] < chosen[1.0]["kept_importance"]


def test_a_plan_is_within_the_limit_when_its_interval_is(here: _Here) -> None:
    def plan(low: float, high: float) -> dict[str, Any]:
        return latency_search._plan("knapsack", [], 0.6, Timing(Share(0.595, low, high, 5.95), {}), 0.5)

    assert plan(0.591, 0.599)["met"]
    assert not plan(0.58, 0.61)["met"]
    assert not plan(np.nan, np.nan)["met"], "too few windows to tell"


def test_a_latency_below_that_of_the_smallest_network_is_refused_with_it_and_one_above_the_present_too(
    here: _Here,
) -> None:
    smallest = min(timing.share.value for timing in here.timings.values())
    said: list[str] = []
    with pytest.raises(ModelError, match=rf"the smallest network takes {5 * smallest:.3g} ms, {smallest:.0%} of the"):
        search(here.board.found, Search(here, LatencyGoal(share=0.9 * smallest)), judge=lambda _: {}, say=said.append)
    assert said == [f"latency: smallest {5 * smallest:.3g} ms, asked for {4.5 * smallest:.3g} ms, present 5 ms"]
    with pytest.raises(ConfigError, match="takes 5 ms already"):
        search(here.board.found, Search(here, LatencyGoal(ms=6.0)), judge=lambda _: {}, say=said.append)


def test_the_rival_is_the_largest_input_whose_interval_is_within_the_limit(here: _Here) -> None:
    spec = PreprocessSpec(size=(32, 32))
    sizes = {f"size-{side}": spec.model_copy(update={"size": (side, side)}) for side in (24, 16, 8)}
    shares = {"size-24": (0.59, 0.61), "size-16": (0.5, 0.51), "size-8": (0.3, 0.31)}
    timings = {name: Timing(Share(value, value, high, 5 * value), {}) for name, (value, high) in shares.items()}
    clock = replace(here, sizes=sizes, timings={**here.timings, **timings})
    assert here.board.searched(clock)["rival_size"] == [16, 16]
    assert here.board.searched(clock, share=0.7)["rival_size"] == [24, 24]
    assert here.board.searched(here)["rival_size"] is None


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((64, 64), [(56, 56), (48, 48), (40, 40), (32, 32)]),
        ((128, 96), [(112, 80), (96, 64), (80, 64), (64, 48)]),
        ((224, 224), [(192, 192), (160, 160), (128, 128), (96, 96)]),
    ],
)
def test_the_rivals_inputs_keep_the_proportions_the_largest_first(size: tuple[int, int], sizes: list[object]) -> None:
    start = SimpleNamespace(preprocess=PreprocessSpec(size=size), architecture=SimpleNamespace(resized=lambda _: None))
    job: Any = SimpleNamespace(start=start)
    assert [spec.size for spec in latency_networks.smaller_sizes(job)] == sizes


def test_the_rival_learns_as_a_pruned_model_does_and_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its training is not run: the plan and the teacher that it is given are looked at."""
    given: dict[str, Any] = {}

    def fit(plan: TrainingPlan, model: object, workspace: object, spec: PreprocessSpec, **more: Any) -> dict[str, Any]:
        given.update(more, plan=plan, spec=spec)
        return {}

    monkeypatch.setattr(latency, "fit", fit)
    monkeypatch.setattr(latency, "recovered", lambda job, name, stage, *, make, **_: (name, make(Path())))
    architecture = SimpleNamespace(resized=lambda size: f"at {size}")
    start = SimpleNamespace(
        name="float", record={}, preprocess=PreprocessSpec(size=(64, 64)), load=nn.Identity, architecture=architecture
    )
    config = CompressConfig(latency="0.6x", recovery_epochs=7, recovery_lr=0.002)
    job: Any = SimpleNamespace(config=config, start=start, workspace=None, console=None, teacher="the teacher")
    pruned: Any = SimpleNamespace(
        record={"latency_search": {"rival_size": [48, 48]}, "metrics": {"training": {"epochs": 14}}}
    )
    name, made = latency.rival_of(job, (48, 48), epochs=epochs_of(pruned))
    assert (name, made.architecture, made.spec.size) == ("float-48px", "at (48, 48)", (48, 48))
    expected = TrainingPlan.for_recovery(config, **training_recipe(job))
    assert given["plan"].loop == replace(expected.loop, epochs=14), "as many as the pruned one got, in two rounds"
    assert given["plan"].distill_weight == expected.distill_weight
    assert given["teacher"] == "the teacher"
    assert given["spec"].size == (48, 48)
    assert latency.rival_size(job, pruned) == (48, 48)
    job.config = config.model_copy(update={"rival": False})
    assert latency.rival_size(job, pruned) is None


def test_plans_for_a_device_that_cannot_be_asked_again_are_predicted_and_kept_below_the_limit() -> None:
    board = _Board.planted()
    clock = board.clock()
    chosen = board.searched(clock)["chosen"]
    assert chosen["met"]
    assert chosen["p50_ms"] is None
    assert chosen["share_of_unpruned"] is chosen["share_of_unpruned_ci"] is None
    gone = {name: len(channels) for name, _, channels in chosen["history"]}
    truth = board.took(tuple(gone.get(group.name, 0) // group.repeats for group in board.space.groups)).share.value
    assert 0.4 < truth <= 0.6
    assert chosen["predicted_share"] == pytest.approx(truth, abs=0.02)
    # A prediction has no interval: three per cent below the limit is what is asked of it.
    whole = clock.timings[UNPRUNED]
    blocks = {"block1.conv": 0.41, "block2.conv": 0.2}
    deeper = replace(clock, timings={**clock.timings, UNPRUNED: replace(whole, layers={**whole.layers, **blocks})})
    plans = board.searched(deeper, blocks=[BlockCost("block1", 1.0), BlockCost("block2", 2.0)])["plans"]
    assert [plan["predicted_share"] for plan in plans if plan["way"] == "depth"] == [pytest.approx(0.39)]
    for other in (replace(clock, layers=("other",)), replace(clock, timings={UNPRUNED: clock.timings[UNPRUNED]})):
        with pytest.raises(ModelError, match="can be cut in other ways"):
            board.searched(other)


def test_whatever_a_device_says_it_measured_the_search_ends_rightly_or_with_an_error(tmp_path: Path) -> None:
    """Its record comes with a run folder from elsewhere; so each field is given what the record's own limits allow."""
    board = _Board.planted()
    engines = {
        name: {**board.took(one).share.to_json(), "layers": dict(board.took(one).layers)}
        for name, one in board.cuts.items()
    }
    layer = board.space.layers[0]
    wrong: dict[str, list[object]] = {
        "p50_ms": [1e-9, 1e12, 1],
        "share_of_unpruned": [1e-9, 1e12, 1.0],
        "share_of_unpruned_ci": [None, [1e-9, 1e12], [2.0, 1.0], [1e12, 1e12]],
        "layers": [{}, {"other": 0.5}, {layer: 1.0}, {layer: 0.0}, dict.fromkeys(board.space.layers, 1.0)],
    }
    ended = Counter[str]()
    for name, key_of in itertools.product((*list(engines)[:2], "all"), wrong):
        for value in wrong[key_of]:
            changed = {key: {**one, key_of: value} if name in (key, "all") else one for key, one in engines.items()}
            record = {
                **{"schema": 1, "created": "2026", "name": "candidates-float", "key": "k", "outputs": {}},
                **{"variant": "float", "target": "board", "candidates": "c", "engines": changed, "measured_on": {}},
            }
            records.check(records.CandidateTimes, record, tmp_path / "times.json")
            timings = {key: Timing(Share.from_json(one), one["layers"]) for key, one in changed.items()}
            try:
                chosen = board.searched(board.clock(timings))["chosen"]
            except EdgeoptError:
                ended["error"] += 1
                continue
            assert np.isfinite(chosen["predicted_share"])
            ended["chosen"] += 1
    assert ended["error"] >= 3, ended
    assert ended["chosen"] >= 20, ended


@pytest.mark.slow
def test_a_slice_of_the_file_is_what_exporting_the_slice_gives(tmp_path: Path) -> None:
    import onnx
    import onnxruntime
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet.r160_in1k", pretrained=False, num_classes=3).eval()
    example = torch.zeros(1, 3, 64, 64)
    scheme = get_scheme("u8a7w")
    whole = quantize(model, [torch.randn(4, 3, 64, 64)], scheme=scheme)
    found = prunable(model, example=example, importance="l2", round_to=4)
    space = WidthSpace(found.groups, tuple(found.costs))
    history = history_of(space.plan(space.at_ratio(0.5)))
    slicer = Slicer(model, whole, scheme, tmp_path, (3, 64, 64))
    slicer.write(history, tmp_path / "slice.onnx")
    assert not slicer._exported

    sliced = replay(copy.deepcopy(model), history, example=example)
    export_qdq(
        quantized_like(sliced, whole, example), tmp_path / "exported.onnx", input_shape=(3, 64, 64), scheme=scheme
    )
    one, other = (onnx.load(str(tmp_path / f"{name}.onnx")) for name in ("slice", "exported"))
    assert _weights(one) == _weights(other)
    assert _weights(one) != _weights(slicer._whole)
    session = onnxruntime.InferenceSession(str(tmp_path / "slice.onnx"))
    assert session.run(None, {"input": np.zeros((1, 3, 64, 64), np.float32)})[0].shape == (1, 3)
    smaller = resliced(slicer._whole, model, model, (3, 32, 32))
    assert [dim.dim_value for dim in smaller.graph.input[0].type.tensor_type.shape.dim[1:]] == [3, 32, 32]


@pytest.mark.slow
def test_padding_that_depends_on_the_inputs_size_is_that_of_the_smaller_input(tmp_path: Path) -> None:
    """Cut from the whole network's file, the last maps of an EfficientNet would be too small, or none be left."""
    import onnx
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet.r160_in1k", pretrained=False, num_classes=3, pad_type="same").eval()
    scheme = get_scheme("u8a7w")
    whole = quantize(model, [torch.randn(4, 3, 64, 64)], scheme=scheme)
    slicer = Slicer(model, whole, scheme, tmp_path, (3, 64, 64))
    for side in (56, 32):
        slicer.write([], tmp_path / f"{side}.onnx", (3, side, side))
    assert slicer._exported == ["56"], "32 divides by the strides as 64 does"
    pads = {side: _pads(onnx.load(str(tmp_path / f"{side}.onnx"))) for side in (56, 32)}
    assert pads[32] == _pads(slicer._whole)
    assert pads[56] != pads[32]


def _pads(model: object) -> list[tuple[int, ...]]:
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]  # type: ignore[attr-defined]
    return [tuple(one.ints) for node in nodes for one in node.attribute if one.name == "pads"]


def _weights(model: object) -> list[tuple[int, ...]]:
    """Shapes of the int8 weights, in the order of the layers."""
    tensors = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}  # type: ignore[attr-defined]
    makers = {output: node for node in model.graph.node for output in node.output}  # type: ignore[attr-defined]
    weights = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]  # type: ignore[attr-defined]
    return [tensors[name if name in tensors else makers[name].input[0]] for name in weights]


@pytest.fixture(scope="module")
def small_trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("latency")
    return api.finetune(
        DataConfig(path=str(paint_folder(folder / "pictures", each=24)), image_size=64),
        ModelConfig(name="test_resnet.r160_in1k", pretrained=False),
        TrainConfig(epochs=1, batch_size=8, flip=False, precision="fp32", memory_format="contiguous"),
        run=folder / "run",
    ).run


@pytest.fixture
def small_run(small_trained: Run, tmp_path: Path) -> Run:
    """A copy for each test: what one of them pruned to a latency would be among the other's verdicts."""
    return Run.open(shutil.copytree(small_trained.path, tmp_path / "small"))


#: What a fast CPU and a busy machine may make of so small a network.
_CANNOT_TELL = ("pruning cannot reach", "no plan held the latency")


class _Notes:
    """A console that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def task(self, title: str) -> object:
        from edgeopt.console import Silent

        self.said.append(f"task: {title}")
        return Silent().task(title)


@pytest.mark.slow
def test_compress_prunes_until_the_measured_engine_meets_the_latency(small_run: Run) -> None:
    done, told = [], ""
    for seconds in (6, 30):
        config = CompressConfig(latency="0.9x", timing_seconds=seconds, epochs=1, recovery_epochs=1)
        notes = _Notes()
        try:
            done = api.compress(small_run, config, targets=("openvino",), console=notes)  # type: ignore[arg-type]
            break
        except ModelError as error:
            told = error.message
            if not told.startswith(_CANNOT_TELL):
                raise
    if not done:
        pytest.skip(f"this machine cannot tell here: {told}")
    made = {item.name: item for item in done}
    pruned = made["float-under90pct"]
    counts = pruned.record["pruning"]
    assert counts["macs_after"] < counts["macs_before"]
    assert counts["parameters_after"] < counts["parameters_before"]
    # Timed before any training: the feasibility line comes first.
    line = next(index for index, text in enumerate(notes.said) if text.startswith("latency: smallest"))
    assert line < notes.said.index("task: recovery")

    search = json.loads((small_run.path / "host/float-under90pct/latency_search.json").read_text())
    assert len(search["candidates"]) >= 12
    assert search["table_error"]["engines"] >= 3
    assert {plan["way"] for plan in search["plans"]} >= {"knapsack", "global ratio"}
    assert search["chosen"]["met"]
    assert search["chosen"]["share_of_unpruned_ci"][1] <= 0.9
    assert all(not key.endswith("_ms") for plan in search["plans"] for key in plan if "predicted" in key)

    finals = [item for item in made.values() if item.record.get("scheme")]
    verdicts = [item.record["latency"] for item in finals]
    assert {verdict["verdict"] for verdict in verdicts} <= {"met", "missed", "undecided"}
    assert sum(verdict["recommended"] for verdict in verdicts) == 1
    if search["rival_size"]:
        assert {tuple(item.preprocess.size) for item in finals} == {(64, 64), tuple(search["rival_size"])}
        rival = finals[1].name
        assert rivals(small_run) == {rival, small_run.variants()[rival]["parent"]}
    again = api.compress(small_run, config, targets=("openvino",))
    assert all(item.skipped for item in again)


def _verdict(windows: dict[str, float], asked: str, *, noise: float, count: int = 24) -> dict[str, object]:
    """Of engines whose calls take these milliseconds, give or take ``noise`` of themselves, window by window."""
    rng = np.random.default_rng(0)
    target = load_target("openvino")
    engines = {
        name: EngineResult(
            EngineSpec(name, "openvino", Path("x"), target, "int8"),
            tuple((float(ms * np.exp(rng.normal(0, noise))),) * 10 for _ in range(count)),
            *(0.1, 0, {}, 0.0, True),
        )
        for name, ms in windows.items()
    }
    result = BenchResult("planted", engines, {}, 1, count, 20.0, {}, {})
    item = Variant(Run(Path("x"), {}), "mine", {"metrics": {"val_top1": 0.9}}, skipped=False)
    return latency_verdict._row(item, result, latency_goal(asked))


@pytest.mark.parametrize("others", [0.1, 0.9, None])
def test_a_machine_that_was_busy_while_latencies_were_measured_is_told_of_once(
    others: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, said = load_target("openvino"), []
    spec = EngineSpec(UNPRUNED, "openvino", Path("x"), target, "int8", pictures=tmp_path, preprocess=tmp_path)
    engine = EngineResult(spec, ((1.0,),) * 8, *(0.1, 0, {}, others, True))
    result = BenchResult("planted", {UNPRUNED: engine}, {}, 1, 8, 20.0, {}, {})
    monkeypatch.setattr("edgeopt.bench.bed.bench", lambda *_, **__: result)
    job: Any = SimpleNamespace(
        start=SimpleNamespace(preprocess=PreprocessSpec(size=(8, 8))), console=SimpleNamespace(say=said.append)
    )
    with bed_of(job, target, "u8a7w") as bed:
        for _ in range(3):
            bed.measure([spec], 1.0, width=0.01)
    busy = ["the machine was busy with other work (up to 0.9 cores) while engines were timed: "
            "on a quiet one another share of the latency may remain"]  # fmt: skip
    assert said == (busy if others == 0.9 else [])


def test_where_there_is_no_profiler_layers_take_their_share_of_the_macs() -> None:
    """Else dropping blocks would be planned as if none of them took any time."""
    costs, share = {"stem": 10, "blocks.0.conv": 30}, Share(1.0, 1.0, 1.0, 5.0)
    assert parts_of(Timing(share, {}), costs) == {"stem": 0.25, "blocks.0.conv": 0.75}
    assert parts_of(Timing(share, {"stem": 0.4}), costs) == {"stem": 0.4}


def test_what_could_not_be_timed_has_no_share_and_says_why() -> None:
    target = load_target("openvino")
    spec = EngineSpec(UNPRUNED, "openvino", Path("x"), target, "int8")
    engine = EngineResult(spec, ((1.0,),) * 8, *(0.1, 0, {}, 0.0, True))
    result = BenchResult("planted", {UNPRUNED: engine}, {"candidate-3": "it hangs"}, 1, 8, 20.0, {}, {})
    assert Share.of(result, UNPRUNED) == Share(1.0, 1.0, 1.0, 1.0)
    with pytest.raises(BackendError, match="candidate-3 has no measurement: it hangs"):
        Share.of(result, "candidate-3")


@pytest.mark.parametrize(
    ("ms", "noise", "asked", "verdict"),
    [
        (5.0, 0.01, "0.6x", "met"),
        (5.0, 0.01, "6ms", "met"),
        (7.0, 0.01, "0.6x", "missed"),
        (7.0, 0.01, "6ms", "missed"),
        (6.05, 0.1, "0.6x", "undecided"),
        (6.05, 0.1, "6ms", "undecided"),
        (5.7, 0.1, "0.6x", "undecided"),
        (5.7, 0.1, "6ms", "undecided"),
    ],
)
def test_the_end_is_judged_by_its_interval_and_more_seconds_would_decide(
    ms: float, noise: float, asked: str, verdict: str
) -> None:
    row = _verdict({"unpruned": 10.0, "mine": ms}, asked, noise=noise)
    assert row["verdict"] == verdict, row
    said = latency_verdict._sentence("mine", asked, {**row, "recommended": True})
    assert ("would decide: --set timing_seconds=" in said) == (verdict == "undecided")
    assert (row["seconds_to_decide"] is not None) == (verdict == "undecided")


def test_of_those_that_do_not_miss_the_latency_the_more_accurate_is_recommended() -> None:
    def recommended(*rows: tuple[str, float]) -> int:
        return latency_verdict._best([{"verdict": verdict, "val_top1": top1} for verdict, top1 in rows])

    assert recommended(("met", 0.8), ("met", 0.9)) == 1, "the rival, if it wins"
    assert recommended(("met", 0.9), ("met", 0.8)) == 0
    assert recommended(("met", 0.8), ("met", 0.8)) == 0
    assert recommended(("undecided", 0.8), ("missed", 0.9)) == 0
    assert recommended(("missed", 0.8), ("missed", 0.9)) == 1


def test_as_many_seconds_as_are_said_would_decide() -> None:
    interval = Interval(6.2, 5.9, 6.6)
    seconds = seconds_to_decide(interval, 6.0, 20.0)
    assert seconds is not None
    low = 6.2 - 0.3 * (20.0 / seconds) ** 0.5
    assert low == pytest.approx(6.0), "the interval narrows with the root of the time"
    assert seconds_to_decide(Interval(6.0, 5.9, 6.1), 6.0, 20.0) is None


@pytest.mark.slow
def test_a_missed_latency_is_exit_code_3_and_in_the_report(
    small_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["compress", "--int8", "--latency", "0.8x", "--target", "openvino", "--epochs", "1", "--recovery-epochs",
             "1", "--set", "timing_seconds=6", "--json", "--quiet", "--run", str(small_run.path)]  # fmt: skip

    def code() -> object:
        with pytest.raises(SystemExit) as ended:
            cli.main(typed)
        return ended.value.code or 0

    first, told = code(), capsys.readouterr()
    if first == 1 and any(words in told.err for words in _CANNOT_TELL):
        pytest.skip(f"this machine cannot tell here: {told.err}")
    best = "missed" if first == 3 else "met or undecided"
    verdicts = small_run.latency_verdicts()
    assert verdicts, f"{first}: {told.err}"
    (recommended,) = (name for name, one in verdicts.items() if one["recommended"])
    assert (verdicts[recommended]["verdict"] == "missed") == (best == "missed")
    made = [one for one in json.loads(told.out) if one.get("latency")]
    assert {one["variant"] for one in made} == set(verdicts)
    # What was measured is made a miss: the same command finds it and says so with its exit code.
    for name, one in verdicts.items():
        write_json(small_run.path / "host" / name / "latency/verdict.json", {**one, "verdict": "missed"})
    assert code() == 3
    (found,) = latencies(small_run).values()
    assert [row["variant"] for row in found["verdicts"]] == [one["variant"] for one in made]
    assert sum(plan["taken"] for plan in found["plans"]) == 1
    write_run(tmp_path / "planted")
    page = render(replace(assemble(tmp_path / "planted"), latencies={"float-under80pct": found}))
    assert '0.8x on openvino <span class="badge missed">missed</span>' in page
    assert all(row["variant"] in page for row in found["verdicts"])


def test_the_report_has_what_was_feasible_and_the_plan_that_was_taken(small_plans: dict[str, Any]) -> None:
    found = _searched(small_plans)
    assert (found["present_ms"], found["smallest_ms"], found["limit_share"]) == (2.0, 1.0, 0.8)
    assert [(plan["way"], plan["taken"]) for plan in found["plans"]] == [("latency", True), ("depth", False)]
    assert found["engines_timed"] == 5


@pytest.fixture
def small_plans() -> dict[str, Any]:
    smallest = {"p50_ms": 1.0, "share_of_unpruned": 0.5, "share_of_unpruned_ci": [0.4, 0.6]}
    return {**SEARCH, "candidates": [*SEARCH["candidates"], smallest]}


def test_a_search_that_was_made_is_not_made_again_when_what_follows_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Path] = []

    def searching(job: object, target: object, scheme: str, folder: Path) -> None:
        searched.append(folder)
        cuts = [["conv1", True, [0]]]
        write_json(
            folder / latency.RECORD,
            {"schema": 1, **SEARCH, "untouched": {}, "chosen": {**SEARCH["chosen"], "history": cuts}},
        )

    def interrupted(job: object, history: object, *_: object) -> None:
        assert history == [["conv1", True, [0]]]
        raise KeyboardInterrupt

    monkeypatch.setattr(latency, "_search", searching)
    monkeypatch.setattr(latency, "cut_and_recovered", interrupted)
    monkeypatch.setattr(latency, "recovered", lambda *_, make, **__: make(tmp_path))
    job: Any = SimpleNamespace(
        config=CompressConfig(latency="0.8x"), start=SimpleNamespace(name="float"), round_to=8, targets=("openvino",)
    )
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            latency.pruned_to_latency(job, load_target("openvino"), "u8a8w")
    assert searched == [tmp_path]


@pytest.mark.parametrize("recommended", [None, False, True])
def test_the_report_says_when_no_engine_was_measured_against_the_latency(
    recommended: bool | None, tmp_path: Path
) -> None:
    """As with another device's times, whose end that device has yet to measure."""
    run = write_small_run(tmp_path / "run")
    plant(run)
    verdict = run.path / "host/int8-u8a7w/latency/verdict.json"
    if recommended is None:
        shutil.rmtree(verdict.parent)
    else:
        write_json(verdict, {**json.loads(verdict.read_text()), "recommended": recommended})
    api.report(run)
    page = (run.path / "report/report.html").read_text()
    assert ("until its device does, the latency is a prediction" in page) == (recommended is None)
    assert ("0.8x on onnxruntime" in page) == bool(recommended)


@pytest.mark.slow
def test_a_latency_that_pruning_cannot_reach_is_refused_with_the_smallest(small_run: Run) -> None:
    with pytest.raises(ModelError, match=r"pruning cannot reach .* the smallest network takes .* ms") as caught:
        api.compress(small_run, CompressConfig(latency="1%", timing_seconds=2), targets=("openvino",))
    assert "--latency" in str(caught.value.fix)


#: edgeopt on the device: a machine that says it is that board, and that has no torch.
_ON_THE_BOARD = """
import sys
sys.modules["torch"] = None
from edgeopt import cli, environment
environment.board = lambda: "Planted Board 1"
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_planted_board_without_torch_times_the_candidates_and_pruning_here_goes_by_its_times(
    small_run: Run, tmp_path: Path
) -> None:
    run = Run.open(Path(shutil.copytree(small_run.path, tmp_path / "run")))
    target = tmp_path / "planted.toml"
    scheme = load_backend("openvino").schemes()[0]
    target.write_text(
        f'schema = 1\ntitle = "planted"\nbackend = "openvino"\nscheme = "{scheme}"\nmatch = {{ board = "Planted" }}\n'
    )
    goal = CompressConfig(latency="0.9x", epochs=1, recovery_epochs=1, rival=False)
    with pytest.raises(ConfigError, match="planted is another device") as refused:
        api.compress(run, goal, targets=(str(target),))
    assert "--latency-candidates" in str(refused.value.fix)
    assert api.compress(run, CompressConfig(latency_candidates=True), targets=(str(target),)) == []
    (exported,) = run.candidates().values()
    assert len(exported["candidates"]) >= 12
    with pytest.raises(BackendError, match="this machine is not planted: the board is"):
        api.bench_candidates(run)

    device = shutil.copytree(run.path, tmp_path / "device")
    typed = ["bench", "--latency-candidates", "--seconds", "10", "--json", "--run", str(device)]
    said = subprocess.run([sys.executable, "-c", _ON_THE_BOARD, *typed], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    (times,) = json.loads(said.stdout)
    assert times["measured_on"]["board"] == "Planted Board 1"
    assert set(times["engines"]) == set(exported["candidates"])
    assert times["engines"]["unpruned"]["share_of_unpruned"] == 1
    assert set(times["engines"]["unpruned"]["layers"]) <= set(exported["layers"])
    shutil.copytree(device / "device", run.path / "device", dirs_exist_ok=True)

    notes = _Notes()
    pruned, int8 = api.compress(run, goal, targets=(str(target),), console=notes)  # type: ignore[arg-type]
    search = pruned.record["latency_search"]
    told = {name: engine["p50_ms"] for name, engine in times["engines"].items()}
    assert {one["name"]: one["p50_ms"] for one in search["candidates"]}.items() <= told.items()
    assert all(plan["p50_ms"] is None and plan["share_of_unpruned"] is None for plan in search["plans"])
    assert search["chosen"]["predicted_share"] <= 0.9
    assert pruned.record["pruning"]["macs_after"] < pruned.record["pruning"]["macs_before"]
    assert "latency" not in int8.record, "nothing was measured, and nothing is judged"
    assert any("--budget max_p50_ms=" in text for text in notes.said)
    assert latencies(run)[pruned.name]["verdicts"] == []

    with pytest.raises(ConfigError, match="the times that planted measured are of other candidates"):
        api.compress(run, goal.model_copy(update={"ignore": ("layer1",)}), targets=(str(target),))


def test_a_latency_needs_one_target_that_is_here(path_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="a latency is that of int8 engines of one target"):
        api.compress(path_run, CompressConfig(latency_candidates=True))
    with pytest.raises(ConfigError, match="latency_candidates is what a device times first"):
        validate(CompressConfig, {"latency_candidates": True, "latency": "4ms"}, where="compress options")
    with pytest.raises(SystemExit):
        cli.main(
            ["bench", "--latency-candidates", "--throughput", "--budget", "max_p50_ms=4", "--run", str(path_run.path)]
        )
    assert "--throughput, --budget: of a run's engines" in capsys.readouterr().err
    with pytest.raises(MissingStageError, match="has no candidates") as missing:
        api.bench_candidates(path_run)
    assert "--latency-candidates" in str(missing.value.fix)
    for targets in ((), ("openvino", "onnxruntime")):
        with pytest.raises(ConfigError, match="a latency is that of int8 engines of one target"):
            api.compress(path_run, CompressConfig(latency="4ms"), targets=targets)
    with pytest.raises(ConfigError, match="raspberry-pi-5 is another device"):
        api.compress(path_run, CompressConfig(latency="4ms"), targets=("raspberry-pi-5",))
