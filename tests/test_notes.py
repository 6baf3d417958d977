"""What a report says below its table: a line for all engines that it is true of, with what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_fixture import edit, write_run

from edgeopt.config import Budget
from edgeopt.errors import RunError
from edgeopt.report.budget import judge
from edgeopt.report.headline import confidence
from edgeopt.report.html import render_html
from edgeopt.report.markdown import render_markdown
from edgeopt.report.notes import notes
from edgeopt.report.table import assemble
from edgeopt.report.text import render_text

INT8 = "openvino/int8-u8a7w"
UNSETTLED = ("onnxruntime/float", "onnxruntime/int8-u8a7w", INT8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "digits")


def unsettled(run: Path) -> None:
    for key in UNSETTLED:
        path = run / "device" / key / "latency.json"
        p50 = json.loads(path.read_text())["p50_ms"]
        edit(path, stable=False, p50_ci_ms=[0.9 * p50, 1.1 * p50])


def differing(run: Path, starts: int) -> None:
    """Of all engines' ratios to the original: a process of which is a fifth slower every other time."""
    for path in run.glob("device/*/*/latency.json"):
        record = json.loads(path.read_text())
        for ratio in record["ratios"]:
            by_start = [ratio["speedup"] * (1.0, 0.8)[n % 2] for n in range(starts)]
            ci = [min(by_start), max(by_start)]
            ratio |= {"by_start": by_start, "starts_differ": True, "speedup_ci": ci}
        edit(path, ratios=record["ratios"], windows_by_start=[24 // starts] * starts)


def test_timing_that_did_not_settle_is_one_line_that_says_what_to_do(run: Path) -> None:
    unsettled(run)
    report = assemble(run)
    (said,) = (line for line in notes(report) if "did not settle" in line)
    assert said == (
        f"{', '.join(UNSETTLED)}: the timing did not settle, p50 is uncertain by more than 10 %; ratios have intervals "
        "of their own; to settle it: edgeopt bench --seconds 80, on a quiet machine"
    )
    assert render_text(report).splitlines().count(said) == 1
    assert f"- {said}" in render_markdown(report).splitlines()
    assert "edgeopt bench --seconds 80, on a quiet machine" in render_html(report)
    assert "settle" not in render_text(assemble(write_run(run.parent / "quiet")))


def test_most_of_the_engines_are_named_by_the_others(run: Path) -> None:
    keys = ["/".join(path.parent.parts[-2:]) for path in run.glob("device/*/*/latency.json")]
    for key in set(keys) - {INT8}:
        edit(run / "device" / key / "latency.json", stable=False)
    assert notes(assemble(run))[0].startswith(f"every engine that was timed but {INT8}: the timing did not settle")


def test_an_unsettled_engine_without_windows_has_its_advice_too(run: Path) -> None:
    unsettled(run)
    edit(run / "device" / INT8 / "latency.json", window_medians_ms=None, windows_by_start=None, p50_ci_ms=None)
    assert "to settle it: edgeopt bench --seconds" in notes(assemble(run))[0]


def test_a_busy_machine_is_one_line_too(run: Path) -> None:
    for key in UNSETTLED:
        edit(run / "device" / key / "latency.json", stable=False, other_load_cores=1.0)
    (said,) = (line for line in notes(assemble(run)) if "busy" in line)
    assert said.startswith(", ".join(UNSETTLED))
    assert said.endswith("stop it, then edgeopt bench again")


def test_the_same_reason_of_several_engines_is_said_once(run: Path) -> None:
    for key in UNSETTLED[:2]:
        path = run / "device" / key
        (path / "latency.json").unlink()
        edit(path / "build.json", engine=None, reason="no such accelerator here")
    assert f"{', '.join(UNSETTLED[:2])}: no such accelerator here" in notes(assemble(run))


def test_starts_that_differ_are_said_with_what_they_showed(run: Path) -> None:
    differing(run, 2)
    report = assemble(run)
    row = report.row(INT8)
    assert row is not None
    assert row.speedup_starts is not None
    assert any(flag.startswith("its starts differ: 9.") for flag in row.flags)
    (said,) = (line for line in notes(report) if "starts of the processes differ" in line)
    assert f"{INT8} 9." in said
    assert said.endswith("no more than their range: edgeopt bench --seconds 60 --starts 6")
    assert "× at 95 % confidence" not in confidence(report)
    assert "in 2 starts of the processes, and more would tell it" in confidence(report)
    differing(run, 6)
    assert "× at 95 % confidence" in confidence(assemble(run))
    assert notes(assemble(run))[0].endswith("intervals are of 6 starts")


def test_a_ratio_of_two_starts_that_differ_decides_only_what_is_far_from_them(run: Path) -> None:
    def judged(limit: float) -> tuple[str, str]:
        found = judge(assemble(run), Budget.model_validate({"min_speedup": limit}))
        (line,) = (one for one in found.budget if one.engine == INT8)
        return line.status, line.message

    measured = assemble(run).row(INT8)
    assert measured is not None
    assert measured.speedup is not None
    differing(run, 2)  # to 0.8 of it, so that it may as well be 0.64 or 1.25
    assert judged(0.6 * measured.speedup)[0] == "met"
    status, message = judged(0.7 * measured.speedup)
    assert status == "undecided"
    assert "starts of the processes differ" in message
    assert message.endswith("edgeopt bench --starts 6 would decide")
    assert judged(1.3 * measured.speedup)[0] == "missed"
    differing(run, 6)
    assert judged(0.7 * measured.speedup)[0] == "met"


def test_windows_that_are_not_those_of_the_starts_are_a_damaged_record(run: Path) -> None:
    edit(run / "device" / INT8 / "latency.json", windows_by_start=[1, 2])
    with pytest.raises(RunError, match="its windows are not those of its starts"):
        assemble(run)
