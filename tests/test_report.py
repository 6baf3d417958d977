"""report: from records alone to table, verdicts, HTML, Markdown, JSON and JUnit; the records' numbers are planted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from report_fixture import ENGINES, LABELS, MACHINE, edit, plant_rival, plant_training, with_budget, write_run

from edgeopt.bench import accuracy_record
from edgeopt.config import Budget
from edgeopt.errors import BudgetMissedError, MissingStageError, RunError, UndecidedError, UnstableError
from edgeopt.files import write_json
from edgeopt.metrics import class_drops, macro, per_class, share_bound
from edgeopt.report import Report, assemble, exit_code, failure, judge, write_report
from edgeopt.report.changes import SHOWN
from edgeopt.report.engine_row import Change, Mistake
from edgeopt.report.format import count, percent, points, points_range, significant, times, times_range
from edgeopt.report.headline import champion, confidence, sentence
from edgeopt.report.html import render_html
from edgeopt.report.notes import notes
from edgeopt.report.sections import SECTIONS, scenarios
from edgeopt.report.sections.changes import render as render_changes
from edgeopt.report.svg import Scale, linear_ticks, log_ticks
from edgeopt.report.thumbnails import thumbnail

GOLDEN = Path(__file__).parent / "golden"
INT8 = "onnxruntime/int8-u8a7w"
FIELDS = {
    "target", "machine", "backend", "variant", "precision", "scheme", "top1", "top1_ci", "simulated_top1",
    "drop_points", "drop_ci_points", "agreement", "p50_ms", "p90_ms", "p99_ms", "p50_ci_ms", "throughput_ips",
    "speedup", "speedup_ci", "baseline", "size_bytes", "peak_memory_bytes", "macs", "params", "int8_share",
    "int8_share_macs", "batch", "threads", "stable", "verdict", "measured_on",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_run(tmp_path_factory.mktemp("report") / "digits")


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return assemble(run)


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(run, tmp_path / "digits"))


def budget(**lines: object) -> Budget:
    return Budget.model_validate(lines)


def statuses(report: Report, engine: str = INT8, **lines: object) -> list[str]:
    return [line.status for line in judge(report, budget(**lines)).budget if line.engine == engine]


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_has_what_was_measured(report: Report) -> None:
    assert report.original is not None
    assert report.original.key == "pytorch/float"
    assert [row.key for row in report.rows] == [*(engine[0] for engine in ENGINES), "tensorrt/int8-s8a8w"]
    row = report.row(INT8)
    assert row is not None
    assert row.p50_ms == pytest.approx(1.3, rel=0.1)
    assert row.speedup == pytest.approx(9.0 / 1.3, rel=0.02)
    assert row.baseline == "pytorch/float"
    assert row.float_speedup == pytest.approx(2.0, rel=0.02)
    assert row.float_baseline == "onnxruntime/float"
    assert row.speedup_ci is not None
    assert row.speedup_ci[0] < row.speedup < row.speedup_ci[1]
    assert row.drop_points == pytest.approx(100 / 360)
    assert (row.lost, row.gained, row.pictures) == (1, 0, 360)
    assert (row.size_bytes, row.params, row.macs) == (3_600_000, 3_380_000, 73_000_000)
    assert row.int8_share == 1.0
    assert row.machine == "Planted CPU 9000"


def test_what_was_not_measured_is_none_and_says_why(report: Report) -> None:
    row = report.row("tensorrt/int8-s8a8w")
    assert row is not None
    assert not row.measured
    assert row.p50_ms is row.top1 is row.size_bytes is row.speedup is row.verdict is None
    assert row.reason == "no NVIDIA GPU here"
    assert row.device_command == "edgeopt build --target tensorrt"


def test_simulated_accuracy_comes_from_the_same_model_in_torch(own_run: Path) -> None:
    shutil.copytree(own_run / "device" / INT8, own_run / "device/pytorch/int8-u8a7w")
    (own_run / "device/pytorch/int8-u8a7w/latency.json").unlink()
    edit(own_run / "device/pytorch/int8-u8a7w/accuracy.json", top1=0.999)
    found = assemble(own_run)
    assert found.row("pytorch/int8-u8a7w") is None  # a simulation is no engine
    row = found.row(INT8)
    assert row is not None
    assert row.simulated_top1 == 0.999
    assert any("less accurate than it was trained to be" in flag for flag in row.flags)


def test_flags_say_what_a_reader_must_not_miss(own_run: Path) -> None:
    latency = own_run / "device" / INT8 / "latency.json"
    ratios = json.loads(latency.read_text())["ratios"]
    ratios[1] |= {"speedup": 0.9, "speedup_ci": [0.85, 0.95]}
    edit(latency, ratios=ratios, stable=False, fits_target=False)
    row = assemble(own_run).row(INT8)
    assert row is not None
    assert row.flags == (
        "the timing did not settle",
        "measured on another machine than its target describes",
        "slower than onnxruntime/float",
    )
    ratios[1] |= {"speedup": 1.01, "speedup_ci": [0.95, 1.06]}
    edit(latency, ratios=ratios, stable=False, other_load_cores=1.0, fits_target=True)
    row = assemble(own_run).row(INT8)
    assert row is not None
    assert row.flags == ("the machine was busy with other work", "not shown to be faster than onnxruntime/float")


def test_pruning_that_does_not_lower_latency_is_flagged(own_run: Path, report: Report) -> None:
    pruned = "onnxruntime/int8-u8a7w-prune33"
    row = report.row(pruned)
    assert row is not None
    assert row.flags == ()
    latency = json.loads((own_run / "device" / INT8 / "latency.json").read_text())
    edit(own_run / "device" / pruned / "latency.json", window_medians_ms=latency["window_medians_ms"])
    row = assemble(own_run).row(pruned)
    assert row is not None
    assert row.flags == (f"not shown to be faster than {INT8}, which has more MACs",)


def test_the_fastest_other_precision_is_the_one_to_beat(own_run: Path) -> None:
    latency = own_run / "device" / INT8 / "latency.json"
    ratios = json.loads(latency.read_text())["ratios"]
    bf16 = {"baseline": "onnxruntime/float-bf16", "kind": "float", "precision": "bf16"}
    edit(latency, ratios=[*ratios, {**bf16, "speedup": 1.2, "speedup_ci": [1.1, 1.3]}])
    written = write_report(own_run)
    row, plain = written.report.row(INT8), written.report.row("openvino/int8-u8a7w")
    assert row is not None
    assert (row.float_baseline, row.float_speedup) == ("onnxruntime/float-bf16", 1.2)
    (fp32,) = (ratio for ratio in ratios if ratio["kind"] == "float")
    assert (row.fp32_baseline, row.fp32_speedup) == ("onnxruntime/float", fp32["speedup"])  # and float32 is not lost
    assert f"{INT8}: {times(fp32['speedup'])} as fast as onnxruntime/float (" in written.text
    assert f"; fp32: {times(fp32['speedup'])} (" in written.markdown.read_text(encoding="utf-8")
    assert f"fp32: {times_range(fp32['speedup_ci'])}<" in written.html.read_text(encoding="utf-8")
    assert plain is not None
    assert plain.fp32_speedup is None, "where float32 is the one to beat it is said once"


def test_an_engine_that_could_not_be_timed_says_why(own_run: Path) -> None:
    (own_run / "device" / INT8 / "latency.json").unlink()
    beside = own_run / "device/openvino/float/latency.json"
    edit(beside, bench={**json.loads(beside.read_text())["bench"], "failures": {INT8: "no answer within 30 s"}})
    written = write_report(own_run)
    assert f"{INT8}: could not be timed: no answer within 30 s" in written.text
    assert "no answer within 30 s" in written.html.read_text(encoding="utf-8")
    (own_run / "device" / INT8 / "accuracy.json").unlink()
    assert statuses(assemble(own_run), min_speedup=2) == ["undecided"]  # a broken engine does not pass unseen


def test_a_device_without_the_original_still_reports(own_run: Path) -> None:
    shutil.rmtree(own_run / "device/pytorch")
    shutil.rmtree(own_run / "host")
    (own_run / "data/split.json").unlink()
    for key in (INT8, "onnxruntime/int8-u8a7w-prune33", "openvino/int8-u8a7w", "onnxruntime/float", "openvino/float"):
        latency = own_run / "device" / key / "latency.json"
        ratios = [one for one in json.loads(latency.read_text())["ratios"] if one["kind"] != "original"]
        edit(latency, ratios=ratios)
        gone = dict.fromkeys(("drop_points", "drop_ci_points", "drop_lower_points", "drop_upper_points", "drop"))
        edit(own_run / "device" / key / "accuracy.json", **gone, agreement=None, baseline=None)
    written = write_report(own_run, budget(max_drop_points=1))
    row = written.report.row(INT8)
    assert written.report.original is None
    assert row is not None
    assert row.baseline == "onnxruntime/float"
    # What is compared with another engine is never called the original, nor put into its column.
    best = champion(written.report)
    assert best is not None
    html = written.html.read_text(encoding="utf-8")
    assert best.baseline in ("onnxruntime/float", "openvino/float")
    assert f"is {times(best.speedup)} as fast as {best.baseline}" in sentence(written.report)
    assert "original" not in sentence(written.report)
    assert f" against {best.baseline}</p>" in html
    markdown = written.markdown.read_text(encoding="utf-8").splitlines()
    head, _, *cells = [line.split(" | ") for line in markdown if line.startswith("|")][: 2 + len(written.report.rows)]
    assert {line[head.index("× original")] for line in cells} == {"–"}
    (line,) = (one for one in written.text.splitlines() if one.startswith(f"{INT8} "))
    assert line.split()[-6:-4] == ["–", times(row.float_speedup)], "no figure in the column of the original"
    speeds = re.findall(r'<td class="speed" data-v="(.*?)">\s*(\S+)', _section(html, "engines"))
    assert set(speeds) == {("", "–")}, "nor is it sorted by"
    assert written.exit_code == 5
    assert "the original was not measured" in written.markdown.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        (f"device/{INT8}/latency.json", "{", "cannot read"),
        (f"device/{INT8}/latency.json", '{"ratios": []}', "is damaged: it states no schema"),
        (f"device/{INT8}/latency.json", '{"schema": 1, "ratios": [{}]}', r"is damaged: 'ratios\.0\.baseline'"),
        (f"device/{INT8}/latency.json", '{"schema": 1, "stable": 3}', "'stable': input should be a valid boolean"),
        (f"device/{INT8}/latency.json", '{"schema": 1, "p50_ms": 1e400}', "the number 1e400 is too large"),
        (f"device/{INT8}/latency.json", '{"schema": 1, "p50_ms": -1}', "'p50_ms': input should be greater than"),
        (f"device/{INT8}/latency.json", '{"schema": 1, "p50_ms": 1e300}', "'p50_ms': input should be less than"),
        (f"device/{INT8}/latency.json", '{"schema": 1, "p50_ms": NaN}', "NaN is not JSON"),
        ("run.json", '{"schema": 2}', "schema"),
    ],
)
def test_damaged_records_are_named(own_run: Path, path: str, content: str, message: str) -> None:
    (own_run / path).write_text(content)
    with pytest.raises(RunError, match=message):
        assemble(own_run)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("top1_ci", [1], r"is damaged: 'top1_ci': list should have at least 2"),
        ("top1", "<b>", "is damaged: 'top1': input should be a valid number, got '<b>'"),
        ("per_class", {"0": {"recall": "x"}}, r"is damaged: 'per_class\.0\.recall'"),
        ("confusion", [[1]], "its confusion matrix does not fit its classes"),
        ("predictions", [0], "its answers do not fit"),
        ("labels", ["a"], "its answers do not fit"),
    ],
)
def test_damaged_accuracy_is_named(own_run: Path, field: str, value: object, message: str) -> None:
    edit(own_run / "device" / INT8 / "accuracy.json", **{field: value})
    with pytest.raises(RunError, match=message):
        assemble(own_run)


def test_a_run_without_engines_says_what_to_type(own_run: Path) -> None:
    shutil.rmtree(own_run / "device")
    with pytest.raises(MissingStageError, match="edgeopt build"):
        assemble(own_run)


# -- the budget --------------------------------------------------------------------------------------------------------


def test_lines_are_judged_on_bounds_not_on_luck(report: Report) -> None:
    # One picture of 360 was lost: 0.28 points, between -0.47 and 1.24 (one-sided 95 % each way).
    assert statuses(report, max_drop_points=1.3) == ["met"]
    assert statuses(report, max_drop_points=1.0) == ["undecided"]
    assert statuses(report, min_top1=0.9) == ["met"]
    assert statuses(report, min_top1=0.98) == ["undecided"]
    assert statuses(report, min_top1=0.999) == ["missed"]
    assert statuses(report, min_speedup=6) == ["met"]
    assert statuses(report, min_speedup=8) == ["missed"]
    assert statuses(report, max_p50_ms=1.5) == ["met"]
    assert statuses(report, max_p50_ms=1.0) == ["missed"]
    assert statuses(report, max_p50_ms=1.29) == ["undecided"]
    assert statuses(report, max_p99_ms=2.0) == ["met"]
    assert statuses(report, min_throughput_ips=900) == ["missed"]
    assert statuses(report, max_size_mib=4, max_memory_mib=50, min_int8_share=1) == ["met", "missed", "met"]
    assert statuses(report, "openvino/int8-u8a7w", min_int8_share=1) == ["missed"]


def test_each_line_is_judged_by_the_figure_and_the_interval_of_its_name(own_run: Path) -> None:
    planted = {"p50_ms": 1.3, "p99_ms": 2.0, "throughput_ips": 700.0}
    intervals = {"p50_ci_ms": [1.2, 1.4], "p99_ci_ms": [1.8, 2.2], "throughput_ci_ips": [650.0, 750.0]}
    edit(own_run / "device" / INT8 / "latency.json", **planted, **intervals)
    edit(own_run / "device" / INT8 / "fusion.json", int8_layers=45, int8_share=0.9, int8_share_macs=0.5)
    found = assemble(own_run)
    for name, (beyond, within, inside) in {
        "max_p50_ms": (1.1, 1.5, 1.35),
        "max_p99_ms": (1.7, 2.3, 2.1),
        "min_throughput_ips": (800, 600, 680),
    }.items():
        for limit, status in ((beyond, "missed"), (within, "met"), (inside, "undecided")):
            assert statuses(found, **{name: limit}) == [status], (name, limit)
    assert statuses(found, min_int8_share=0.9) == ["met"], "of the layers"
    assert statuses(found, min_int8_share=0.95) == ["missed"]


def test_a_clear_drop_is_missed(own_run: Path) -> None:
    edit(
        own_run / "device" / INT8 / "accuracy.json",
        drop_points=5.0,
        drop_ci_points=[3.0, 7.4],
        drop_lower_points=3.2,
        drop_upper_points=7.0,
    )
    assert statuses(assemble(own_run), max_drop_points=3) == ["missed"]


def answers_again(run: Path, key: str, wrong: list[int], labels: list[str] = LABELS) -> None:
    """Give an engine other answers: those to the pictures ``wrong`` are of the next class."""
    path = run / "device" / key / "accuracy.json"
    original = json.loads((run / "device/pytorch/float/accuracy.json").read_text())
    truth = np.asarray(original["truth"])
    answers = truth.copy()
    answers[wrong] = (answers[wrong] + 1) % len(labels)
    logits = 5 * np.eye(len(labels), dtype=np.float32)[answers]
    record = accuracy_record(
        logits, truth, labels, key=key, baseline="pytorch/float", baseline_predictions=original["predictions"]
    )
    write_json(path, {**record, "measured_on": MACHINE})


def test_a_class_that_falls_is_found_though_the_average_hides_it(own_run: Path) -> None:
    threes = [index for index in range(360) if index % 10 == 3]
    answers_again(own_run, INT8, threes[:14])
    found = assemble(own_run)
    assert statuses(found, max_drop_points=6) == ["met"]  # 14 of 360
    assert statuses(found, max_class_drop_points=15, min_class_recall=0.8) == ["missed", "missed"]  # 14 of 36
    (line, _) = (one for one in judge(found, budget(max_class_drop_points=15, min_class_recall=0.8)).budget[:2])
    assert "measured 38.89 points lost (" in line.message
    assert "in class '3'" in line.message


def test_that_one_of_many_classes_falls_short_is_no_luck_and_none_is_met_by_another(own_run: Path) -> None:
    answers_again(own_run, INT8, [3, 13, 23, 33, 43])
    found = assemble(own_run)
    (alone, among) = (share_bound(31, 36, confidence, upper=True) for confidence in (0.95, 1 - 0.05 / 10))
    assert statuses(found, min_class_recall=(alone + among) / 2) == ["undecided"], "one of ten may be so by chance"
    assert statuses(found, min_class_recall=min(1.0, among + 0.005)) == ["missed"]
    # Of a class of six pictures none was lost, and of one of 200 four: not the latter is far from being met.
    labels = np.repeat([0, 1], [200, 6])
    before, after = np.ones(206, np.bool_), np.arange(206) >= 4
    drops = class_drops(before, after, labels, ["large", "small"])
    edit(own_run / "device" / INT8 / "accuracy.json", class_drops=drops)
    (line,) = (one for one in judge(assemble(own_run), budget(max_class_drop_points=5)).budget if one.engine == INT8)
    assert drops["large"]["upper_points"] < 5 < drops["small"]["upper_points"]
    assert line.status == "undecided"
    assert "of class 'small' would decide (6 now)" in line.message


def test_class_lines_are_met_or_say_how_many_pictures_of_which_class_would_decide(own_run: Path) -> None:
    answers_again(own_run, INT8, [3])
    found = assemble(own_run)
    assert statuses(found, max_class_drop_points=16, min_class_recall=0.8) == ["met", "met"]
    lines = judge(found, budget(max_class_drop_points=5, min_class_recall=0.95)).budget[:2]
    assert [line.status for line in lines] == ["undecided"] * 2
    for line in lines:
        need = re.search(r"about ([\d,]+) test pictures of class '3' would decide \(36 now\)", line.message)
        assert need is not None, line.message
        assert 36 < int(need[1].replace(",", "")) < 5000


def test_a_class_without_test_pictures_leaves_a_class_line_undecided(own_run: Path) -> None:
    path = own_run / "device" / INT8 / "accuracy.json"
    scores = json.loads(path.read_text())["per_class"]
    edit(path, per_class={**scores, "9": {**scores["9"], "n": 0, "correct": 0, "recall": None}})
    (line,) = (one for one in judge(assemble(own_run), budget(min_class_recall=0.5)).budget if one.engine == INT8)
    assert line.status == "undecided"
    assert "no test picture is of class '9'" in line.message


def test_a_speedup_line_names_its_baseline(report: Report, own_run: Path) -> None:
    assert [statuses(report, min_speedup=limits) for limits in ({"original": 6, "float": 1.9}, {"float": 2.5})] == [
        ["met", "met"],
        ["missed"],
    ]
    lines = [
        one for one in judge(report, budget(min_speedup={"original": 6, "float": 1.9})).budget if one.engine == INT8
    ]
    assert [one.name for one in lines] == ["min_speedup", "min_speedup.float"]
    assert lines[0].message.endswith("against pytorch/float")
    assert lines[1].message.endswith("against onnxruntime/float")
    latency = own_run / "device" / INT8 / "latency.json"
    edit(latency, ratios=[one for one in json.loads(latency.read_text())["ratios"] if one["kind"] == "float"])
    alone = assemble(own_run)  # a device without torch: another baseline is no substitute for the one that was named
    assert statuses(alone, min_speedup={"original": 1.1, "float": 1.1}) == ["undecided", "met"]


def test_undecided_says_how_many_seconds_would_decide(report: Report) -> None:
    row = report.row(INT8)
    assert row is not None
    assert row.p50_ms is not None
    assert row.p50_ci_ms is not None
    limit = row.p50_ms + (row.p50_ci_ms[1] - row.p50_ms) / 2  # half way: four times the time narrows it that far
    (line,) = (one for one in judge(report, budget(max_p50_ms=limit)).budget if one.engine == INT8)
    assert line.status == "undecided"
    assert "about 80 s would decide: edgeopt bench --seconds N (20 s now)" in line.message


def test_undecided_is_said_and_passes_where_it_is_allowed(own_run: Path) -> None:
    strict = write_report(own_run, budget(max_drop_points=1))
    assert strict.exit_code == 5
    assert isinstance(strict.failure, UndecidedError)
    allowed = write_report(own_run, budget(max_drop_points=1, allow_undecided=True))
    assert (allowed.exit_code, allowed.failure) == (0, None)
    assert "is undecided" in allowed.text
    suite = ElementTree.parse(allowed.junit).getroot()
    assert [suite.get(name) for name in ("failures", "errors", "skipped")] == ["0", "0", "3"]
    cases = {(one.get("classname"), one.get("name")): [child.tag for child in one] for one in suite.iter("testcase")}
    assert cases == {(one.engine.replace("/", "."), one.name): ["skipped"] for one in allowed.report.budget}
    missed = write_report(own_run, budget(max_drop_points=1, max_size_mib=1, allow_undecided=True))
    assert missed.exit_code == 3


def test_undecided_says_how_many_pictures_would_decide_and_they_would(report: Report) -> None:
    (line,) = (one for one in judge(report, budget(max_drop_points=1)).budget if one.engine == INT8)
    found = re.search(r"about ([\d,]+) test pictures would decide \(360 now\)", line.message)
    assert found is not None
    need = int(found[1].replace(",", ""))
    from edgeopt.metrics.paired import _tango

    lost = round(need / 360)
    assert 100 * _tango(lost, 0, need, 1.645) < 1.15
    assert need < 2000


def test_every_int8_engine_is_judged_and_the_worst_decides(report: Report) -> None:
    judged = judge(report, budget(max_size_mib=3.5))
    assert {line.engine: line.status for line in judged.budget} == {
        INT8: "met",
        "onnxruntime/int8-u8a7w-prune33": "met",
        "openvino/int8-u8a7w": "missed",
    }
    assert exit_code(judged.budget) == 3
    assert isinstance(failure(judged.budget), BudgetMissedError)
    row = judged.row("openvino/int8-u8a7w")
    assert row is not None
    assert row.verdict == "missed"
    best = champion(judged)
    assert best is not None
    assert best.key == "onnxruntime/int8-u8a7w-prune33"  # the fastest misses the budget


def test_where_int8_runs_only_elsewhere_float_engines_do_not_meet_its_budget(own_run: Path) -> None:
    for key, *_, scheme, _ms, _wrong, _size, _layers in ENGINES:
        if scheme is not None:
            shutil.rmtree(own_run / "device" / key)
    judged = judge(assemble(own_run), budget(max_drop_points=1.5))
    ((engine, status, message),) = ((line.engine, line.status, line.message) for line in judged.budget)
    assert (engine, status) == ("tensorrt/int8-s8a8w", "not judged")
    assert message.endswith("max_drop_points = 1.5 is not judged, not measured; no NVIDIA GPU here")
    assert exit_code(judged.budget) == 0


def test_engines_of_another_trained_model_are_flagged_and_not_judged(own_run: Path) -> None:
    stage = json.loads((own_run / "host/float/stage.json").read_text())
    (own_run / "host/float-aaaaaa").mkdir()
    write_json(own_run / "host/float-aaaaaa/stage.json", {**stage, "name": "float-aaaaaa", "created": "2001"})
    edit(own_run / "host/int8-u8a7w-prune33/stage.json", parent="float-aaaaaa")
    judged = judge(assemble(own_run), budget(max_size_mib=3.5))
    assert {line.engine for line in judged.budget} == {INT8, "openvino/int8-u8a7w"}
    row = judged.row("onnxruntime/int8-u8a7w-prune33")
    assert row is not None
    assert "of another trained model than the original of this table" in row.flags


def test_an_unstable_measurement_matters_only_where_a_line_needs_it(tmp_path: Path) -> None:
    busy = assemble(write_run(tmp_path / "busy", load=1.5))
    assert statuses(busy, max_p50_ms=1) == statuses(busy, max_p50_ms=1.29) == ["unstable"]
    assert statuses(busy, max_p50_ms=99) == ["met"]  # others can only have slowed it down
    assert statuses(busy, min_speedup=2) == ["unstable"]  # they may have slowed the baseline more
    assert "seems 11.3× as fast" in sentence(busy)
    assert "has to be measured again" in confidence(busy)
    judged = judge(busy, budget(min_speedup=2, max_size_mib=9))
    assert exit_code(judged.budget) == 4
    assert isinstance(failure(judged.budget), UnstableError)
    assert exit_code(judge(busy, budget(max_size_mib=9)).budget) == 0
    lenient = judge(busy, budget(min_speedup=2, max_drop_points=1, allow_undecided=True)).budget
    assert {line.status for line in lenient} == {"unstable", "undecided"}
    assert exit_code(lenient) == exit_code(lenient, allow_undecided=True) == 4, "undecided alone may pass"


def test_milliseconds_are_not_judged_on_another_machine_but_ratios_are(own_run: Path) -> None:
    edit(own_run / "device" / INT8 / "latency.json", fits_target=False)
    found = assemble(own_run)
    assert statuses(found, max_p50_ms=0.1, max_p99_ms=0.1, min_throughput_ips=9e9) == ["not judged"] * 3
    assert statuses(found, min_speedup=8) == ["missed"]
    lines = [one for one in judge(found, budget(max_p50_ms=0.1)).budget if one.engine == INT8]
    assert exit_code(lines) == 0
    assert failure(lines) is None


def test_a_targets_own_budget_counts_where_the_recipes_is_silent(own_run: Path) -> None:
    with_budget(own_run, INT8, max_size_mib=1, max_drop_points=9)
    found = assemble(own_run)
    assert statuses(found, max_drop_points=1.0) == ["undecided", "missed"]


def test_a_gpus_own_time_has_a_column_where_there_is_one(own_run: Path) -> None:
    assert "On the GPU" not in scenarios.render(assemble(own_run))
    edit(own_run / "device" / INT8 / "latency.json", device_p50_ms=0.4321)
    found = assemble(own_run)
    page = scenarios.render(found)
    assert "On the GPU" in page
    assert page.count("0.432") >= 1
    assert {row.key for row in found.rows if row.device_p50_ms is not None} == {INT8}


def test_what_was_not_measured_is_undecided(own_run: Path) -> None:
    (own_run / "device" / INT8 / "latency.json").unlink()
    edit(own_run / "device" / "openvino/int8-u8a7w" / "latency.json", p99_ms=None, p99_ci_ms=None, p50_ci_ms=None)
    found = assemble(own_run)
    judged = judge(found, budget(max_p99_ms=99, max_p50_ms=99))
    messages = [line.message for line in judged.budget if line.status == "undecided"]
    assert len(messages) == 4
    assert "its latency was not measured" in messages[0]
    assert "too few windows" in messages[2]
    assert "1,000 samples" in messages[3]
    assert isinstance(failure(judged.budget), UndecidedError)


@pytest.mark.parametrize("name", sorted(set(Budget.model_fields) - {"allow_undecided"}))
def test_every_budget_line_can_be_met_and_missed(report: Report, name: str) -> None:
    share = name in ("min_top1", "min_class_recall", "min_int8_share")
    easy, hard = (1e9, 1e-9) if name.startswith("max_") else (1e-9, 1.0 if share else 1e9)
    assert statuses(report, **{name: easy}) == ["met"]
    engine = "openvino/int8-u8a7w" if name == "min_int8_share" else INT8
    # A drop of a single picture is no proof of one.
    hardly = name in ("max_drop_points", "max_class_drop_points")
    assert statuses(report, engine, **{name: hard}) == (["undecided"] if hardly else ["missed"])


def test_no_budget_judges_nothing(run: Path, report: Report) -> None:
    assert report.budget == ()
    assert all(row.verdict is None for row in report.rows)
    assert report.to_json()["budget"] == {
        "verdict": None, "exit_code": 0, "allow_undecided": False, "lines": []
    }  # fmt: skip


# -- what is written ---------------------------------------------------------------------------------------------------

LIMITS = {"max_drop_points": 1.5, "min_speedup": 2, "max_size_mib": 3.5}


def golden(name: str, text: str) -> None:
    """Compare with the file in tests/golden; EDGEOPT_GOLDEN=1 rewrites it."""
    path = GOLDEN / name
    if os.environ.get("EDGEOPT_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_golden_markdown_junit_and_text(run: Path) -> None:
    written = write_report(run, budget(**LIMITS))
    golden("report.md", written.markdown.read_text(encoding="utf-8"))
    golden("report.junit.xml", written.junit.read_text(encoding="utf-8"))
    golden("report.txt", written.text + "\n")


def test_json_has_the_promised_fields(run: Path) -> None:
    written = write_report(run, budget(**LIMITS))
    data = json.loads(written.json.read_text(encoding="utf-8"))
    assert data == written.data
    assert data["schema"] == 1
    for row in (data["original"], *data["engines"]):
        assert set(row) >= FIELDS
    assert data["budget"]["exit_code"] == written.exit_code == 3
    assert {line["status"] for line in data["budget"]["lines"]} == {"met", "undecided", "missed"}
    assert data["environment"][MACHINE["machine_id"]] == MACHINE
    assert data["run"]["dataset"]["splits"] == {"train": 1260, "val": 180, "test": 360}
    assert data["labels"] == [str(digit) for digit in range(10)]


def test_junit_counts_add_up(run: Path) -> None:
    root = ElementTree.parse(write_report(run, budget(**LIMITS)).junit).getroot()
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "9", "failures": "1", "errors": "1", "skipped": "0",
    }  # fmt: skip
    assert len(list(root.iter("testcase"))) == 9
    failed = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert [(case.get("classname"), case.get("name")) for case in failed] == [("openvino.int8-u8a7w", "max_size_mib")]


class _Page(HTMLParser):
    """Collects what a page could load, ids, and whether tags close."""

    VOID = frozenset({"wbr", "meta", "link", "br", "input", "img", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data"):
                self.urls.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    assert page.open == []
    return page


def test_the_page_is_well_formed_whole_and_asks_nothing_of_the_network(run: Path) -> None:
    html = write_report(run, budget(**LIMITS)).html.read_text(encoding="utf-8")
    page = parsed(html)
    shown = {name for name in SECTIONS if name in page.ids}
    assert shown == set(SECTIONS) - {"ladder", "latency", "widths"}, "no such compression here"
    assert shown >= {
        "engines", "budget", "plot", "timing", "accuracy", "classes", "confusion", "changes", "mistakes", "confidence",
        "fusion", "training", "environment", "commands",
    }  # fmt: skip
    assert all(url.startswith(("#", "data:")) for url in page.urls)
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert "url(" not in html
    assert len(html) < 6_000_000
    assert html.count('class="mark') == 2 * len(ENGINES)  # against latency, and against size
    assert "blocks.0.conv" in html  # layers left in float, by name
    assert "keeps" in html or "loses" in html


def test_twenty_engines_of_as_many_classes_as_have_maps_and_all_their_pictures_stay_under_6_mb(tmp_path: Path) -> None:
    labels = [f"a class with a rather long name, as species have them, {index}" for index in range(24)]
    found = assemble(write_run(tmp_path / "large", labels=labels, pictures=240))
    noise = thumbnail(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))  # no picture takes more
    kinds = ("lost", "gained", "other") * SHOWN
    changes = tuple(Change(kind, 99, "photos/some/picture.jpg", *labels[:3], noise) for kind in kinds)
    mistakes = (Mistake("photos/some/picture.jpg", *labels[:2], 0.9, noise, noise),) * 12
    full: dict[str, Any] = {"mistakes": mistakes, "confusion": ((39,) * 24,) * 24}
    layers = tuple(f"blocks.{index}.depthwise" for index in range(200))
    measured = [row for row in found.engines if row.measured]
    engines = tuple(
        replace(row, key=f"{row.key}-{copy}", changes=changes, float_layers=layers, **full)
        for copy in range(4)
        for row in measured
    )
    assert len(engines) == 20
    assert found.original is not None
    html = render_html(replace(found, engines=engines, original=replace(found.original, **full)))
    assert html.count(noise) == 3 * SHOWN + 2 * 24, "of the leading engine, and the original's mistakes"
    assert "Pictures are left out" not in html
    assert len(html.encode()) < 6_000_000
    # Fifty times the mistakes would be over it: figures come before pictures.
    full["mistakes"] = mistakes * 50
    html = render_html(
        replace(
            found,
            engines=tuple(replace(row, **full) for row in engines),
            original=replace(found.original, **full),
        )
    )
    assert noise not in html
    assert "Pictures are left out: with them this page would be over 6 MB." in html
    assert html.count("photos/some/picture.jpg") >= 3 * SHOWN + 2 * 600
    assert len(html.encode()) < 6_000_000


def test_the_slowest_layers_are_listed_with_their_share_and_names_are_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "slow")
    layers = [{"name": f"<b>{i}</b>", "kind": "QLinearConv", "ms": 40.0 / (i + 1)} for i in range(20)]
    stated = {"schema": 1, "threads": 1, "runs": 10, "batch": 1, "source": "planted", "layers": layers}
    write_json(run / "device" / INT8 / "layer_times.json", stated)
    row = assemble(run).row(INT8)
    assert row is not None
    assert [ms for _, _, ms in row.slowest_layers] == [40.0 / (i + 1) for i in range(15)]
    html = write_report(run).html.read_text(encoding="utf-8")
    assert "<td><code>&lt;b&gt;0&lt;/b&gt;</code></td><td>QLinearConv</td><td>40.0</td><td>28 %</td>" in html
    assert "<b>0" not in html


def test_labels_and_names_from_strangers_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    quote = '" onload="alert(2)'
    run = write_run(tmp_path / "evil", labels=[evil, quote, *"abcdefgh"])
    edit(run / "device" / INT8 / "fusion.json", float_layers=[evil], int8_share=0.98)
    html = write_report(run).html.read_text(encoding="utf-8")
    parsed(html)
    assert html.count("<script>") == 1  # our own
    assert 'onload="' not in html
    assert "&lt;script&gt;alert(1)" in html


def test_scenarios_show_shares_settings_and_what_another_tool_measured(own_run: Path) -> None:
    check = {"tool": "benchmark_app", "p50_ms": 1.18, "edgeopt_p50_ms": 1.3, "ratio": 1.1, "agrees": False}
    edit(own_run / "device" / INT8 / "latency.json", cross_check=check)
    page = write_report(own_run).html.read_text()
    section = page.partition('<section id="scenarios"')[2].partition("</section>")[0]
    assert "decode 37 %, preprocess 20 %, infer 43 %" in section  # of 1.1 + 0.6 + 1.3 ms
    assert "batch 8, 2 × 1 threads, p90 10.9 ms" in section
    assert "1.100" in section
    row = assemble(own_run).row(INT8)
    assert row is not None
    assert "benchmark_app measured 1.18 ms beside edgeopt’s 1.30" in row.flags
    edit(own_run / "device" / INT8 / "latency.json", cross_check={**check, "agrees": None})
    row = assemble(own_run).row(INT8)
    assert row is not None
    assert "benchmark_app measured 1.18 ms beside edgeopt’s 1.30, too noisy to tell whether it agrees" in row.flags
    edit(own_run / "device" / INT8 / "latency.json", cross_check={**check, "agrees": True})
    assert not any("benchmark_app" in flag for one in assemble(own_run).rows for flag in one.flags)


def test_pictures_whose_answer_changed_are_shown_what_was_lost_first(own_run: Path) -> None:
    answers_again(own_run, "openvino/int8-u8a7w", [3, 13, 23, *range(0, 360, 9)])
    found = assemble(own_run)
    row = found.row("openvino/int8-u8a7w")
    assert row is not None
    lost = [one for one in row.changes if one.kind == "lost"]
    assert len(lost) == 24
    assert (lost[0].total, row.lost) == (row.lost, row.lost)
    assert (lost[0].path, lost[0].truth, lost[0].before, lost[0].after) == ("test picture 3", "3", "3", "4")
    gained = [one for one in row.changes if one.kind == "gained"]
    assert len(gained) == row.gained
    section = render_changes(replace(found, engines=(row,)))
    assert f"{row.lost} right before, wrong now" in section
    assert "(24 shown)" in section
    assert "McNemar" in section


def _section(html: str, name: str) -> str:
    return html.partition(f'<section id="{name}"')[2].partition("</section>")[0]


def test_precision_recall_f1_and_top5_are_shown_of_every_engine_and_class(own_run: Path) -> None:
    # Of 36 pictures of the digit 1, nine are answered as 2: its recall is 27/36, the precision of 2 is 36/45.
    answers_again(own_run, INT8, list(range(1, 360, 40)))
    edit(own_run / "device" / INT8 / "accuracy.json", top5=0.987)
    row = assemble(own_run).row(INT8)
    assert row is not None
    assert row.macro_recall == pytest.approx((9 + 27 / 36) / 10)
    assert row.macro_precision == pytest.approx((9 + 36 / 45) / 10)
    assert row.macro_f1 == pytest.approx((8 + 2 * 27 / (36 + 27) + 2 * 36 / (36 + 45)) / 10)
    written = write_report(own_run)
    html = written.html.read_text(encoding="utf-8")
    accuracy = _section(html, "accuracy")
    for name in ("Top-5", "Precision", "Recall", "F1"):
        assert f">{name}</th>" in accuracy
    for share in ("98.7 %", percent(row.macro_precision), percent(row.macro_recall), percent(row.macro_f1)):
        assert f'<span class="value">{share}</span>' in accuracy
    table = _section(html, "classes").partition(f"Classes, {INT8}")[2].partition("</table>")[0]
    assert re.findall(r'class="num">(\w+)</th>', table) == ["Precision", "Recall", "F1"]
    ones = table.partition('<th scope="row">1</th>')[2].partition("</tr>")[0]
    assert re.findall(r'class="value">(.*?)<', ones) == ["100.0 %", "75.0 %", "85.7 %"]
    assert '<span class="sub worse">−22.2</span>' in ones  # the original answered 35 of the 36 right
    confusions = _section(html, "confusion").partition(f"Confusion matrix of {INT8}")[2].partition("</table>")[0]
    assert "9 of 36 “1” answered “2” (25.0 %)" in confusions, "rows are what a picture shows"
    assert "“2” answered “1”" not in confusions
    assert f"| {INT8} | 98.7 % | 98.0 % | 97.5 % | 97.5 % |" in written.markdown.read_text(encoding="utf-8")


def test_five_classes_have_no_top5(tmp_path: Path) -> None:
    written = write_report(write_run(tmp_path / "five", labels=list("abcde")))
    assert "Top-5" not in written.html.read_text(encoding="utf-8")
    assert "| engine | macro precision | macro recall | macro F1 |" in written.markdown.read_text()


def test_a_class_that_was_never_answered_has_no_precision_and_counts_as_none_right() -> None:
    figures = per_class(np.array([0, 0, 0]), np.array([0, 0, 1]), ["a", "b", "without pictures"])
    assert figures["b"]["precision"] is None
    assert macro(figures) == pytest.approx({"precision": (2 / 3 + 0) / 2, "recall": (1 + 0) / 2, "f1": (0.8 + 0) / 2})
    assert macro({"without pictures": figures["without pictures"]}) is None


def test_the_change_of_accuracy_has_the_paired_bootstrap_beside_the_score_interval(own_run: Path) -> None:
    answers_again(own_run, INT8, [3, 13, 23, 33])
    row = assemble(own_run).row(INT8)
    assert row is not None
    assert row.drop_bootstrap_points is not None
    low, high = row.drop_bootstrap_points
    assert low < (row.drop_points or 0.0) < high
    assert row.drop_bootstrap_points != row.drop_ci_points
    accuracy = _section(write_report(own_run).html.read_text(encoding="utf-8"), "accuracy")
    assert f'<span class="sub">{points_range(row.drop_ci_points)}</span>' in accuracy
    assert f'<span class="sub">bootstrap {points_range(row.drop_bootstrap_points)}</span>' in accuracy


def test_the_plot_names_the_rival_of_a_model_pruned_to_a_latency(own_run: Path, report: Report) -> None:
    assert "rival" not in _section(render_html(report), "plot")
    plant_rival(own_run)
    found = assemble(own_run)
    assert found.rivals == {"float-64px", "int8-u8a7w-64px"}
    plot = _section(render_html(found), "plot")
    assert re.findall(r">([^<]*, the rival)</text>", plot) == ["openvino/int8-u8a7w-64px, the rival"] * 2  # two axes
    assert 'data-tip="openvino/int8-u8a7w-64px, the rival' in plot
    assert "The rival is the unpruned model at a smaller input" in plot


def test_the_plot_greys_what_another_engine_beats_on_both_counts_of_its_axis(report: Report) -> None:
    panels = _section(render_html(report), "plot").split('data-panel="plot"')[1:]
    assert len(panels) == 2
    beaten = [set(re.findall(r'class="mark dominated"[^>]*data-tip="(\S+)', panel)) for panel in panels]
    pruned = "onnxruntime/int8-u8a7w-prune33"
    assert beaten == [
        {"pytorch/float", "onnxruntime/float", INT8, pruned},  # OpenVINO's are faster and no less accurate
        {"pytorch/float", "openvino/float", "openvino/int8-u8a7w"},
    ]
    fronts = [re.search(r'class="front" points="([^"]*)"', panel) for panel in panels]
    assert [len(front[1].split()) for front in fronts if front] == [2, 3], "the line joins the others"


def test_a_page_of_several_machines_and_sessions_says_so(own_run: Path) -> None:
    said = ("separate sessions: compare milliseconds", "They were measured on 2 different machines")
    assert not any(text in render_html(assemble(own_run)) for text in said)
    path = own_run / "device" / INT8 / "latency.json"
    bench = json.loads(path.read_text())["bench"]
    edit(path, measured_on={**MACHINE, "machine_id": "ba9876543210"}, bench={**bench, "id": "another"})
    html = render_html(assemble(own_run))
    assert all(text in html for text in said)
    assert "timed in 2 separate sessions" in html


def test_what_changed_while_a_machine_measured_is_beside_what_it_was(own_run: Path) -> None:
    before = {**MACHINE, "frequency_mhz": 3400.0, "temperature_c": 41.0, "throttled": "", "cpu_quota": 1.5}
    before["memory_limit_bytes"] = 512 * 2**20
    after = {**before, "frequency_mhz": 800.0, "temperature_c": 95.0, "throttled": "it was slowed down by heat 3 times"}
    gpu = {"name": "NVIDIA L4", "temperature_c": 41.0, "clock_mhz": 2040.0, "slowed": ""}
    before["gpus"], after["gpus"] = [gpu], [{**gpu, "temperature_c": 92.0, "clock_mhz": 810.0, "slowed": "heat"}]
    for path in own_run.glob("device/*/*/latency.json"):
        edit(path, measured_on=before, measured_on_after=after)
    # The original in int8 is judged and not timed, and last: what is known of the machine by then stays.
    shutil.copytree(own_run / "device" / INT8, own_run / "device/pytorch/int8-u8a7w")
    (own_run / "device/pytorch/int8-u8a7w/latency.json").unlink()
    edit(own_run / "device/pytorch/int8-u8a7w/build.json", created="2026-02-03T00:00:00+00:00", target="pytorch")
    found = assemble(own_run)
    said, of_gpu = (line for line in notes(found) if "slowed down" in line)
    assert of_gpu == "NVIDIA L4: the GPU was slowed down meanwhile (heat)"
    assert said.startswith("Planted CPU 9000: the CPU was slowed down meanwhile (it was slowed down by heat 3 times)")
    facts = _section(render_html(found), "environment")
    assert "2040 MHz, 41 °C → 810 MHz, 92 °C, slowed down by heat</dd>" in facts
    for said in ("3400 MHz → 800 MHz", "41 °C → 95 °C", "it was slowed down by heat 3 times"):
        assert said in facts
    assert "<dt>Frequency governor</dt><dd>performance</dd>" in facts
    assert "<dt>Cores the cgroup allows</dt><dd>1.5</dd>" in facts
    assert "<dt>Memory the cgroup allows</dt><dd>512 MiB</dd>" in facts


def test_distributions_of_calls_stand_on_their_samples(report: Report) -> None:
    row = report.row(INT8)
    assert row is not None
    highest = max(row.density, key=lambda point: point[1])
    assert highest[0] == pytest.approx(row.p50_ms, rel=0.1)
    assert all(0 <= share <= 1 for _, share in row.density)
    assert row.density[0][0] < (row.p50_ms or 0) < row.density[-1][0]


def test_a_compiled_baseline_has_a_column_and_a_budget_line(own_run: Path) -> None:
    assert statuses(assemble(own_run), min_speedup={"compiled": 2}) == ["undecided"]
    latency = own_run / "device" / INT8 / "latency.json"
    ratio = {"baseline": "pytorch-compiled/float", "kind": "compiled", "speedup": 3.4, "speedup_ci": [3.3, 3.5]}
    edit(latency, ratios=[*json.loads(latency.read_text())["ratios"], ratio])
    found = assemble(own_run)
    assert statuses(found, min_speedup={"compiled": 3}) == ["met"]
    written = write_report(own_run)
    assert "× compiled |" in written.markdown.read_text()
    assert "3.4× (3.3–3.5×)" in written.markdown.read_text()
    assert "through torch.compile" in written.html.read_text()


def test_training_curves_and_the_range_test_are_drawn(own_run: Path) -> None:
    (training,) = assemble(own_run).trainings
    assert training.variant == "float"
    assert training.epochs == ((1, 2.0, 0.91), (2, 1.0, 0.92), (3, 2.0 / 3, 0.93))
    assert training.lr_test is not None
    assert training.lr_test.curve[0] == (1e-6, 2.3)
    page = write_report(own_run).html.read_text()
    section = page.partition('<section id="training"')[2].partition("</section>")[0]
    titles = re.findall("<figcaption>(.*?)</figcaption>", section)
    assert titles == ["float: val top-1, %", "float: train loss", "float: range test of the learning rate"]
    lines = [points.split() for points in re.findall('<polyline[^>]*points="([^"]*)"', section)]
    assert [len(line) for line in lines] == [3, 3, 4]
    heights = [float(point.partition(",")[2]) for point in lines[0]]
    assert heights == sorted(heights, reverse=True)  # accuracy rose, and pixels count from the top


def test_one_epoch_is_no_curve(own_run: Path) -> None:
    plant_training(own_run, epochs=1)
    (own_run / "host" / "float" / "lr_range.json").unlink()
    assert 'id="training"' not in write_report(own_run).html.read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("log.jsonl", "no json\n"),
        ("log.jsonl", '{"epoch": 1, "train_loss": 1.0, "val_top1": "<b>"}\n'),
        ("log.jsonl", '{"epoch": 1e400, "train_loss": 1.0, "val_top1": 1}\n'),
        ("lr_range.json", '{"schema": 1, "lr": 1e-3, "rates": [1e-3, 1e-2], "smoothed": [1.0]}'),
        ("lr_range.json", '{"schema": 1, "lr": 1e-3, "rates": [0, 1e-2], "smoothed": [1.0, 2.0]}'),
    ],
)
def test_a_damaged_training_log_is_said_and_the_rest_shown(own_run: Path, file: str, content: str) -> None:
    (own_run / "host" / "float" / file).write_text(content)
    page = write_report(own_run).html.read_text()
    assert f"{file} is damaged" in page
    assert 'id="engines"' in page


def test_many_classes_become_lists_not_a_million_cells(tmp_path: Path) -> None:
    run = write_run(tmp_path / "many", labels=[f"class {i}" for i in range(120)])
    html = write_report(run).html.read_text(encoding="utf-8")
    parsed(html)
    assert "is taken for" in html
    assert "40 of 120 classes" in html
    assert json.loads((run / "device" / INT8 / "accuracy.json").read_text())["confusion"] is None
    assert re.search(r"class \d+</th><td>class \d+</td>", html)  # counted from the answers
    assert len(html) < 1_000_000


def test_reports_with_little_in_them_render(own_run: Path) -> None:
    for name in ("latency", "accuracy"):
        for path in own_run.glob(f"device/*/*/{name}.json"):
            path.unlink()
    written = write_report(own_run, budget(max_drop_points=1))
    assert "none was measured" in written.text
    assert "none was measured" in written.html.read_text(encoding="utf-8")
    assert confidence(written.report) == ""
    parsed(written.html.read_text(encoding="utf-8"))


def test_the_sentence_says_gain_and_cost(report: Report) -> None:
    text = sentence(report)
    assert text.startswith(
        "openvino/int8-u8a7w is 11.3× as fast as the original PyTorch model, takes 27 % of its space"
    )
    assert "loses 0.3 points of top-1 accuracy (98.9 % → 98.6 %)" in text
    assert "a loss over 1.3 points is ruled out at 95 % confidence by 360 test pictures" in confidence(report)
    row = champion(report)
    assert row is not None
    surer = replace(report, engines=(replace(row, pictures=5000, drop_upper_points=1.041, detectable_points=0.049),))
    said = confidence(surer)
    assert "a loss over 1.05 points is ruled out at 95 % confidence by 5,000 test pictures" in said, (
        "a bound is never rounded down"
    )
    assert "a true loss of 0.05 would be seen" in said


# -- in a browser ------------------------------------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
const said = {errors: [], requests: performance.getEntriesByType("resource").length};
addEventListener("error", (event) => said.errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => said.errors.push(event.violatedDirective));
const column = [...document.querySelectorAll("#engines thead button")][3];
column.click();
said.sorted = [...document.querySelectorAll("#engines tbody tr")].map((row) => row.cells[3].dataset.v);
document.querySelector(".mark").dispatchEvent(new PointerEvent("pointermove", {clientX: 50, clientY: 50}));
said.tip = document.getElementById("tip").hidden ? "" : document.getElementById("tip").textContent;
for (const [name, value] of [["plot", "1"], ["confusion", "0"]]) {
  const select = document.querySelector(`select[data-switch="${name}"]`);
  select.value = value;
  select.dispatchEvent(new Event("change"));
}
said.panels = [...document.querySelectorAll("[data-panel]")].map((panel) => panel.hidden);
said.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
said.fills = [...document.querySelectorAll(".mark")].map((mark) =>
  [mark.dataset.tip.split("\\n")[0], mark.classList.contains("dominated"), getComputedStyle(mark.children[1]).fill]);
document.querySelector("#timing [data-tip]").dispatchEvent(new PointerEvent("pointermove", {clientX: 50, clientY: 50}));
said.call = document.getElementById("tip").textContent;
const out = document.createElement("pre");
out.id = "said";
out.textContent = JSON.stringify(said);
document.body.append(out);
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser_it_sorts_and_hovers_without_errors_or_requests(run: Path, tmp_path: Path, width: int) -> None:
    html = write_report(run, budget(**LIMITS)).html.read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(html.replace("</body>", PROBE), encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        f"--user-data-dir={tmp_path}/p",
    ]
    done = subprocess.run(
        [str(BROWSER), *flags, f"--user-data-dir={tmp_path}/p", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout)
    assert found is not None
    said: dict[str, Any] = json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert said["errors"] == []
    assert said["requests"] == 0
    times_ms = [float(value) for value in said["sorted"] if value]
    assert times_ms == sorted(times_ms, reverse=True)
    assert said["sorted"][-1] == ""  # not measured: last, whichever way
    assert "top-1" in said["tip"]
    fills: dict[tuple[str, bool], set[str]] = {}
    for engine, dominated, fill in said["fills"]:
        fills.setdefault((engine, dominated), set()).add(fill)
    assert len({"".join(fills[INT8, dominated]) for dominated in (False, True)}) == 2, "one is pale where it is beaten"
    assert "p50 " in said["call"]
    # The plots, now by size; the classes of the leading engine; the confusions of the original.
    assert said["panels"] == [True, False, True, False, True, True, False, True, True, True]
    assert said["overflow"] == 0  # readable on a phone: only the tables scroll


# -- small parts -------------------------------------------------------------------------------------------------------


def test_numbers_as_people_read_them() -> None:
    assert [percent(0.98889), percent(None), percent(1.0, 0)] == ["98.9 %", "–", "100 %"]
    assert [points(0.28), points(-0.28), points(0.001), points(None)] == ["−0.28", "+0.28", "0.00", "–"]
    assert points_range((-0.5, 1.2), 1) == "−1.2 to +0.5"
    assert [significant(value) for value in (0.0123, 1.234, 12.34, 1234.0, 0)] == [
        "0.0123",
        "1.23",
        "12.3",
        "1234",
        "0",
    ]
    assert [times(4.94), times(11.26), times(None)] == ["4.9×", "11.3×", "–"]
    assert [times_range((4.71, 5.12)), times_range((6.907, 6.942)), times_range(None)] == ["4.7–5.1×", "6.91–6.94×", ""]
    assert [count(3_380_000), count(999), count(None)] == ["3.38 M", "999", "–"]


def test_scales_and_ticks_stay_inside() -> None:
    scale = Scale(1, 100, 0, 200, log=True)
    assert [scale(1), scale(10), scale(100), scale(1000)] == [0, 100, 200, 200]
    assert linear_ticks(96.2, 100.1) == [97, 98, 99, 100]
    assert log_ticks(0.7, 12) == [1, 2, 5, 10]
    assert log_ticks(2.1, 5.9) == [3, 4, 5]
    assert log_ticks(0.02, 2000) == [0.1, 1, 10, 100, 1000]


def test_html_of_a_judged_report_leads_with_the_verdict(report: Report) -> None:
    html = render_html(judge(report, budget(max_size_mib=9)))
    assert "Budget met" in html
    assert "all 3 lines" in html


def test_the_widths_of_a_pruned_network_are_drawn_before_and_after(run: Path) -> None:
    edit(
        run / "host" / "float" / "stage.json",
        pruning={"widths": {"conv": [64, 48], "<b>": [8, 0]}, "untouched": {"head": "classifier"}},
    )
    assert "measured before training" not in write_report(run).html.read_text(encoding="utf-8")
    edit(
        run / "host" / "float" / "stage.json",
        pruning={
            "widths": {"conv": [64, 48], "<b>": [8, 0]},
            "untouched": {"head": "classifier"},
            **{"macs_before": 122_000_000, "macs_after": 61_000_000},
            **{"parameters_before": 3_380_000, "parameters_after": 1_200_000},
            "latency": {"target": "openvino", "share_of_unpruned": 0.662, "share_of_unpruned_ci": [0.651, 0.67]},
        },
    )
    page = write_report(run, budget(**LIMITS)).html.read_text(encoding="utf-8")
    assert (
        "<p>122 M to 61.0 M MACs; 3.38 M to 1.20 M parameters; in int8 66 % (65.1–67.0 %) of the whole network&#39;s "
        "time on openvino, measured before training</p>"
    ) in page
    assert "64 → 48" in page
    assert "8 → 0" in page
    assert "classifier: <code>head</code>" in page
    assert "&lt;b&gt;" in page
    assert 'title="<b>"' not in page
