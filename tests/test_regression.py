"""compare and --baseline: what became slower, less accurate or larger is found, and what did not is not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from json_schema import misfit
from report_fixture import LABELS, MACHINE, edit, write_run

from edgeopt import api
from edgeopt.bench import accuracy_record
from edgeopt.cli.compare_cmd import command as compare_command
from edgeopt.cli.report_cmd import command as report_command
from edgeopt.config import BaselineConfig
from edgeopt.errors import RunError
from edgeopt.files import write_json
from edgeopt.report import write_report
from edgeopt.report.model import BudgetLine
from edgeopt.report.regression import _ratio_of_ratios
from edgeopt.report.snapshot import json_schema
from edgeopt.run import Run

INT8 = "onnxruntime/int8-u8a7w"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report. Read only."""
    run = write_run(tmp_path_factory.mktemp("before") / "digits")
    write_report(run)
    return run


@pytest.fixture
def after(before: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(before, tmp_path / "digits"))


def slowed(run: Path, key: str, factor: float) -> None:
    """Plant a slow-down in what was timed, as if the engine had become so."""
    path = run / "device" / key / "latency.json"
    record = json.loads(path.read_text())
    for ratio in record["ratios"]:
        ratio["speedup"] /= factor
        ratio["speedup_ci"] = [one / factor for one in ratio["speedup_ci"]]
    edit(path, ratios=record["ratios"], p50_ms=record["p50_ms"] * factor)


def mistaken(run: Path, key: str, count: int) -> None:
    """Answer ``count`` more pictures wrongly."""
    original = json.loads((run / "device/pytorch/float/accuracy.json").read_text())["predictions"]
    known = json.loads((run / "device" / key / "accuracy.json").read_text())
    truth, answers = np.asarray(known["truth"]), np.asarray(known["predictions"])
    more = np.flatnonzero(answers == truth)[:: len(truth) // (count + 1)][:count]
    answers[more] = (answers[more] + 1) % 10
    logits = 5 * np.eye(10, dtype=np.float32)[answers]
    record = accuracy_record(logits, truth, LABELS, key=key, baseline="pytorch/float", baseline_predictions=original)
    write_json(run / "device" / key / "accuracy.json", {**record, "measured_on": MACHINE})


def statuses(before: Path, after: Path, **allowed: float) -> dict[tuple[str, str], str]:
    (found,) = api.compare(before, [after], allowance=BaselineConfig.model_validate(allowed))
    return {(line.engine, line.name): line.status for line in found.lines}


def test_nothing_changed_is_met_line_by_line(before: Path, after: Path) -> None:
    found = statuses(before / "report/report.json", after)
    assert set(found.values()) == {"met"}
    assert found[INT8, "baseline_speed"] == found[INT8, "baseline_drop_points"] == found[INT8, "baseline_size"] == "met"
    assert ("pytorch/float", "baseline_speed") not in found  # it is what the others are compared with


def test_engines_pair_by_name_though_others_came_and_went(before: Path, after: Path) -> None:
    shutil.rmtree(after / "device/onnxruntime/float")
    slowed(after, "openvino/int8-u8a7w", 1.3)
    found = statuses(before, after)
    assert [key for key, status in found.items() if status != "met"] == [("openvino/int8-u8a7w", "baseline_speed")]
    (told,) = api.compare(before, [after])
    assert told.warnings == ("only digits has onnxruntime/float",)


def test_a_planted_slow_down_and_a_planted_drop_are_found_where_they_are(before: Path, after: Path) -> None:
    slowed(after, INT8, 1.3)
    mistaken(after, "openvino/int8-u8a7w", 15)
    found = statuses(before, after)
    assert [key for key, status in found.items() if status != "met"] == [
        (INT8, "baseline_speed"), ("openvino/int8-u8a7w", "baseline_drop_points"),
    ]  # fmt: skip
    assert found[INT8, "baseline_speed"] == found["openvino/int8-u8a7w", "baseline_drop_points"] == "missed"
    allowed = statuses(before, after, slower=0.4, drop_points=9)
    assert set(allowed.values()) == {"met"}


def test_drops_are_paired_picture_by_picture_from_the_reports_alone(before: Path, after: Path) -> None:
    mistaken(after, INT8, 6)
    write_report(after)
    (found,) = api.compare(before / "report/report.json", [after / "report/report.json"])
    (line,) = (one for one in found.lines if one.engine == INT8 and one.name == "baseline_drop_points")
    assert "6 lost and 0 gained of 360; McNemar's exact test: p = 0.031" in line.message
    assert line.status == "undecided"  # 1.67 points, where 1 is allowed
    assert line.message.endswith("test pictures would decide (360 now)")


def test_an_undecided_speed_says_how_many_seconds_would_decide_and_they_would(before: Path, after: Path) -> None:
    def line(path: Path) -> BudgetLine:
        (found,) = api.compare(before, [path])
        (one,) = (one for one in found.lines if (one.engine, one.name) == (INT8, "baseline_speed"))
        return one

    path = after / "device" / INT8 / "latency.json"
    (original, *others) = json.loads(path.read_text())["ratios"]

    def interval(half: float) -> None:
        now = 0.99 * original["speedup"]
        edit(path, ratios=[{**original, "speedup": now, "speedup_ci": [now / half, now * half]}, *others])

    interval(1.08)  # log(0.99 / 0.95) is 0.0412: 0.0770 is 1.87 of it
    assert line(after).status == "undecided"
    assert line(after).message.endswith("about 70 s would decide: edgeopt bench --seconds N (20 s now)")
    interval(1.08 ** (20 / 70) ** 0.5)
    assert line(after).status == "met"
    wide = {**original, "speedup_ci": [0.9 * original["speedup"], 1.1 * original["speedup"]]}
    edit(path, ratios=[wide, *others])
    (found,) = api.compare(after, [before])
    (said,) = (one for one in found.lines if (one.engine, one.name) == (INT8, "baseline_speed"))
    assert said.message.endswith(
        "the earlier report is too uncertain to decide: measure that one with more --seconds and --starts"
    )


def test_other_machines_are_warned_of_and_their_speed_is_not_judged(before: Path, after: Path) -> None:
    slowed(after, INT8, 1.3)
    for path in after.glob("device/*/*/*.json"):
        if path.name in ("latency.json", "accuracy.json"):
            cpu = {**MACHINE["cpu"], "name": "Another CPU"}  # type: ignore[dict-item]
            edit(path, measured_on={**MACHINE, "machine_id": "ba9876543210", "cpu": cpu})
    (found,) = api.compare(before, [after])
    assert {line.status for line in found.lines if line.name == "baseline_speed"} == {"not judged"}
    assert {line.status for line in found.lines if line.name == "baseline_drop_points"} == {"met"}
    assert found.warnings == ("measured on different machines (Planted CPU 9000; Another CPU): speed is not judged",)


def test_what_else_changed_than_the_engines_is_warned_of(before: Path, after: Path) -> None:
    for path in after.glob("device/*/*/latency.json"):
        versions = {"edgeopt": "0.2.0", "numpy": "2.3.0", "onnxruntime": "1.32.0"}
        cpu = {**MACHINE["cpu"], "cores": 1}  # type: ignore[dict-item]
        changed = {"versions": versions, "cpu_quota": 1.5, "governor": "powersave", "python": "3.12.1", "cpu": cpu}
        edit(path, measured_on={**MACHINE, **changed})
    (found,) = api.compare(before, [after])
    said = "not the engines alone changed, so that speed may be of these: "
    said += "cores 2 → 1, CPU quota none → 1.5, governor performance → powersave, Python 3.11.9 → 3.12.1, "
    assert found.warnings == (f"{said}onnxruntime 1.31.1 → 1.32.0",)
    assert {line.status for line in found.lines} == {"met"}


def test_other_datasets_schemas_and_things_are_refused(before: Path, after: Path, tmp_path: Path) -> None:
    edit(after / "run.json", fingerprint="b" * 64)
    with pytest.raises(RunError, match="different datasets"):
        api.compare(before, [after])
    report = json.loads((before / "report/report.json").read_text())
    for content, said in (
        ({**report, "schema": 2}, "has schema 2; this edgeopt reads schema 1"),
        ({"schema": 1}, "is no report"),
        ({**report, "engines": [{**report["engines"][0], "p50_ms": "fast"}]}, r"'engines\.0\.p50_ms'"),
        ({**report, "engines": [], "original": None}, "no engine in common"),
    ):
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(RunError, match=said):
            api.compare(before, [tmp_path / "other.json"])
    for path, said in ((tmp_path, "is not a run folder"), (tmp_path / "repotr.json", "repotr.json does not exist")):
        with pytest.raises(RunError, match=said):
            api.compare(before, [path])


def test_a_result_that_is_gone_or_was_not_measured_again_does_not_pass_as_unchanged(before: Path, after: Path) -> None:
    shutil.rmtree(after / "device/openvino/int8-u8a7w")
    (after / "device" / INT8 / "latency.json").unlink()
    (after / "device/onnxruntime/int8-u8a7w-prune33/accuracy.json").unlink()
    found = {key: status for key, status in statuses(before, after).items() if status != "met"}
    assert found == {
        (INT8, "baseline_speed"): "undecided",
        ("onnxruntime/int8-u8a7w-prune33", "baseline_drop_points"): "undecided",
        ("openvino/int8-u8a7w", "baseline_speed"): "undecided",
    }


def test_what_was_measured_otherwise_than_before_is_not_judged(before: Path, after: Path) -> None:
    edit(after / "device" / INT8 / "latency.json", batch=8)
    path = after / "device/openvino/int8-u8a7w/accuracy.json"
    record = json.loads(path.read_text())
    edit(path, **{name: record[name][1:] + record[name][:1] for name in ("truth", "predictions")})  # another order
    (found,) = api.compare(before, [after])
    others = {(line.engine, line.name): line for line in found.lines if line.status != "met"}
    assert {key: line.status for key, line in others.items()} == {
        (INT8, "baseline_speed"): "not judged",
        ("openvino/int8-u8a7w", "baseline_drop_points"): "not judged",
    }
    assert "batch or threads are others" in others[INT8, "baseline_speed"].message
    assert "the test pictures are others" in others["openvino/int8-u8a7w", "baseline_drop_points"].message


def test_what_grew_is_found_by_more_than_is_allowed(before: Path, after: Path) -> None:
    path = after / "device" / INT8 / "build.json"
    edit(path, size_bytes=round(1.2 * json.loads(path.read_text())["size_bytes"]))
    assert [key for key, status in statuses(before, after).items() if status != "met"] == [(INT8, "baseline_size")]
    assert statuses(before, after)[INT8, "baseline_size"] == "missed"
    assert set(statuses(before, after, larger=0.3).values()) == {"met"}


def test_speed_is_compared_by_a_baseline_that_both_were_timed_beside(before: Path, after: Path) -> None:
    """A device without torch has another headline: its ratio and the earlier one are of different things."""
    for path in after.glob("device/*/int8*/latency.json"):
        edit(path, ratios=[one for one in json.loads(path.read_text())["ratios"] if one["kind"] == "float"])
    (found,) = api.compare(before, [after])
    (line,) = (one for one in found.lines if (one.engine, one.name) == (INT8, "baseline_speed"))
    assert (line.status, line.value) == ("met", pytest.approx(1.0))
    assert "both against onnxruntime/float" in line.message
    path = after / "device" / INT8 / "latency.json"
    edit(path, ratios=[{**one, "baseline": "onnxruntime/other"} for one in json.loads(path.read_text())["ratios"]])
    assert statuses(before, after)[INT8, "baseline_speed"] == "undecided"


def test_two_starts_that_differ_make_no_regression(before: Path, after: Path) -> None:
    """A process that was dealt a bad start is not the engine's fault: as budgets judge such ratios, so does this."""
    path = after / "device" / INT8 / "latency.json"
    (original, *others) = json.loads(path.read_text())["ratios"]

    def line(starts: int) -> BudgetLine:
        by_start = [original["speedup"] * (0.9, 0.7)[number % 2] for number in range(starts)]
        said = {"by_start": by_start, "starts_differ": True, "speedup_ci": [by_start[1], by_start[0]]}
        ratios = [{**original, **said, "speedup": 0.8 * original["speedup"]}, *others]
        edit(path, ratios=ratios, windows_by_start=[24 // starts] * starts)
        (found,) = api.compare(before, [after])
        (one,) = (one for one in found.lines if (one.engine, one.name) == (INT8, "baseline_speed"))
        return one

    assert line(2).status == "undecided"
    assert line(2).message.endswith(
        "starts of the processes differ, then or now: edgeopt bench --starts 6 would decide"
    )
    assert line(6).status == "missed"


def test_a_busy_machine_decides_nothing(before: Path, after: Path) -> None:
    latency = after / "device" / INT8 / "latency.json"
    ratios = [{**one, "quiet": False} for one in json.loads(latency.read_text())["ratios"]]
    edit(latency, ratios=ratios)
    assert statuses(before, after)[INT8, "baseline_speed"] == "unstable"
    assert statuses(after, before)[INT8, "baseline_speed"] == "unstable", "whichever session it was"


def test_the_verb_says_each_line_and_exits_with_the_verdict(before: Path, after: Path) -> None:
    same = CliRunner().invoke(compare_command, [str(before), str(after)], standalone_mode=False)
    assert same.return_value == 0
    assert "digits against digits: met" in same.output
    slowed(after, INT8, 1.3)
    done = CliRunner().invoke(compare_command, [str(before), str(before), str(after), "--json"], standalone_mode=False)
    assert done.return_value == 3
    assert [one["verdict"] for one in json.loads(done.stdout)] == ["met", "missed"]
    first = CliRunner().invoke(compare_command, [str(before), str(after), str(before)], standalone_mode=False)
    assert first.return_value == 3, "the worst of all decides, not the last"


def test_report_judges_a_baseline_beside_the_budget(before: Path, after: Path) -> None:
    slowed(after, INT8, 1.3)
    arguments = ["--run", str(after), "--budget", "max_size_mib=9", "--baseline", str(before / "report/report.json")]
    done = CliRunner().invoke(report_command, arguments, standalone_mode=False)
    assert done.return_value == 3
    assert f"{INT8}: baseline_speed = 0.95 is missed, measured 0.769" in done.output
    assert 'name="baseline_speed"' in (after / "report/junit.xml").read_text()
    allowed = CliRunner().invoke(report_command, [*arguments, "--slower", "0.4"], standalone_mode=False)
    assert allowed.return_value == 0
    for path in after.glob("device/*/*/latency.json"):
        edit(path, measured_on={**MACHINE, "machine_id": "ba9876543210"})
    elsewhere = CliRunner().invoke(report_command, arguments, standalone_mode=False)
    assert elsewhere.return_value == 0
    said = "easured on different machines ("
    assert f"warning: m{said}" in elsewhere.output
    assert f"**Warning**: m{said}" in (after / "report/report.md").read_text()
    assert f"<strong>M{said}" in (after / "report/report.html").read_text()
    own = api.report(Run.open(after), baseline=str(after / "report/report.json"))  # the file that it then writes over
    assert own.exit_code == 0


def test_several_runs_are_one_table_and_what_is_no_run_is_left_out(before: Path, after: Path, tmp_path: Path) -> None:
    slowed(after, INT8, 1.3)
    edit(after / "run.json", fingerprint="b" * 64)
    (tmp_path / "photos").mkdir()
    page = tmp_path / "runs.html"

    def report(*typed: str) -> Result:
        return CliRunner().invoke(report_command, list(typed), standalone_mode=False)

    done = report(str(before), str(after), str(tmp_path / "photos"), "--out", str(page))
    assert done.return_value == 0
    lines = [line.split() for line in done.output.splitlines() if INT8 + " " in line]
    assert [(line[0], line[1]) for line in lines] == [("digits", INT8)] * 2
    assert ["6.9×" in line for line in lines] == [True, False]
    assert "the runs are of different datasets" in done.output
    assert "photos (" in done.output
    html = page.read_text()
    assert html.count('class="engine"') == 14
    assert "http" not in html.replace("http-equiv", "")
    assert all(url.startswith(("#", "data:")) for url in re.findall(r'(?:src|href|action)="([^"]*)"', html))
    again = report(str(before), str(before)).output
    assert "timed in sessions of their own: compare ratios rather than milliseconds" in again
    assert "machines" not in again
    for path in after.glob("device/*/*/latency.json"):
        edit(path, measured_on={**MACHINE, "machine_id": "ba9876543210"})
    assert (
        "measured on 2 different machines: their milliseconds do not compare" in report(str(before), str(after)).output
    )
    as_json = json.loads(report(str(before), str(after), "--json").stdout)
    assert [row["run"] for row in as_json["runs"]] == ["digits"] * 14
    assert "no report to compare" in str(report(str(tmp_path / "photos"), str(tmp_path / "none")).exception)
    assert "a run is named twice" in str(report(str(before), "--run", str(after)).exception)
    assert "--out is for the page of several runs" in str(report("--out", str(page)).exception)


def test_budget_lines_may_be_typed(after: Path, tmp_path: Path) -> None:
    def judged(*typed: str) -> int:
        done = CliRunner().invoke(report_command, ["--run", str(after), *typed], standalone_mode=False)
        assert done.exception is None, done.exception
        return int(done.return_value)

    file = tmp_path / "budget.toml"
    file.write_text("[budget]\nmax_drop_points = 1.0\nmin_speedup = { float = 1.5 }\n")
    assert judged("--budget", str(file)) == 5
    assert judged("--budget", str(file), "--allow-undecided") == 0
    assert judged("--budget", str(file), "--budget", "max_drop_points=2") == 0  # later ones win
    assert judged("--budget", "min_speedup.float=9") == judged("--budget", "max_size_mib=1") == 3
    said = CliRunner().invoke(report_command, ["--run", str(after), "--budget", "max_drop=1"], standalone_mode=False)
    assert "max_drop: unknown key" in str(said.exception)
    alone = CliRunner().invoke(report_command, ["--run", str(after), "--slower", "0.2"], standalone_mode=False)
    assert "is against an earlier report, and none is named" in str(alone.exception)


def test_the_interval_of_a_change_holds_the_true_one_as_often_as_it_says() -> None:
    """Two sessions of 24 windows each, 1,000 times; also that 10 % is found and none is not taken for any."""
    from edgeopt.metrics import ratio_interval

    rng, held, found, false = np.random.default_rng(0), 0, 0, 0
    for true in (1.0, 0.9):
        for _ in range(500):
            was, now = (
                ratio_interval(2 * np.exp(rng.normal(0, 0.02, 24)), np.exp(rng.normal(0, 0.02, 24)) / change)
                for change in (1.0, true)
            )
            low, high = _ratio_of_ratios(was.value, was[1:], now.value, now[1:])
            held += low <= true <= high
            found += true < 1 and high < 0.95
            false += true == 1 and high < 0.95
    assert 0.93 <= held / 1000 <= 0.985
    assert found / 500 >= 0.95
    assert false / 500 <= 0.002


def test_the_published_schema_is_the_one_that_is_read_and_reports_fit_it(before: Path) -> None:
    path = Path(__file__).parent.parent / "edgeopt/report/report.schema.json"
    assert json.loads(path.read_text()) == json_schema()
    report = json.loads((before / "report/report.json").read_text())
    assert misfit(report, json_schema()) == ""
    assert (
        misfit({**report, "engines": [{**report["engines"][0], "top1": 2}]}, json_schema())
        == "engines.0.top1: fits none"
    )
    assert misfit({"schema": 1}, json_schema()).startswith(": lacks ")
