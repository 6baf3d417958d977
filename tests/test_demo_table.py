"""The table of the demo's figures, and the README's words about them, are those that were measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import demo  # noqa: E402  (a script of the benchmarks, whose table is the one tested)

MEASURED = json.loads(demo.OUT.read_text())


def test_the_table_of_the_demo_is_the_one_measured() -> None:
    page = demo.PAGE.read_text(encoding="utf-8")
    written = page.partition(demo.BEGIN)[2].partition(demo.END)[0]
    assert written.strip() == demo.table(MEASURED), "run: python benchmarks/demo.py"


def test_the_readme_says_what_the_demo_measured() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = {row["key"]: row for row in MEASURED["engines"]}
    ort, ov = (rows[f"{name}/int8-u8a8w"] for name in ("onnxruntime", "openvino"))
    pruned = [rows[f"{name}/int8-u8a8w-prune33"] for name in ("onnxruntime", "openvino")]

    def ratio(row: dict[str, Any]) -> str:
        return "({:.2f} to {:.2f})".format(*row["speedup_over_float32_ci"])

    for words in (
        f"the demo took {demo.minutes(MEASURED['seconds']['process'])} after the installation",
        f"{demo.minutes(MEASURED['seconds']['process, installed'])} with it",
        f"{100 * MEASURED['float_top1']:.1f} % of {MEASURED['test_pictures']} test pictures right in float",
        "in int8 {:.1%} on ONNX Runtime and {:.1%} on OpenVINO".format(ort["top1"], ov["top1"]).replace("%", " %"),
        "pruned away {:.1%} and {:.1%}".format(*(row["top1"] for row in pruned)).replace("%", " %"),
        f"int8 {ort['speedup_over_float32']:.2f} times as fast as float32 on ONNX Runtime {ratio(ort)}",
        f"{ov['speedup_over_float32']:.2f} times on OpenVINO {ratio(ov)}",
        f"and {ov['speedup_over_fastest_float']:.2f} times its bf16",
        "{:.2f} and {:.2f} times float32 when pruned".format(*(row["speedup_over_float32"] for row in pruned)),
        f"{MEASURED['float_size_bytes'] / 2**20:.0f} MiB down to {pruned[0]['size_bytes'] / 2**20:.1f}",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, []),
        ({"fp32_speedup_ci": None, "float_speedup_ci": [1.49, 1.6]}, ["speedup"]),
        ({"fp32_speedup_ci": [1.49, 2.0], "float_speedup_ci": [1.6, 1.7]}, ["speedup"]),
        ({"fp32_speedup_ci": None, "float_speedup_ci": None}, ["speedup"]),
        ({"drop_points": 0.6}, ["drop"]),
        ({"drop_upper_points": 1.6}, ["drop"]),
        ({"int8_share": 0.98}, ["int8_share"]),
    ],
)
def test_a_figure_is_met_by_the_bound_of_its_own_backends_float32(
    changed: dict[str, Any], missed: list[str], tmp_path: Path
) -> None:
    row = {
        "key": "openvino/int8", "target": "openvino", "precision": "int8", "top1": 0.99, "p50_ms": 1.0,
        "int8_share": 1.0, "drop_points": 0.5, "drop_lower_points": -0.5, "drop_upper_points": 1.5, "size_bytes": 1,
        "fp32_speedup": 1.6, "fp32_speedup_ci": [1.5, 1.7], "float_speedup": 1.1, "float_speedup_ci": [1.0, 1.2],
    }  # fmt: skip
    original = {"measured_on": "m", "bench_seconds": 25.0, "pictures": 539, "top1": 0.98, "size_bytes": 2}
    moment = "2026-01-01T00:00:00+00:00"
    report = {"original": original, "created": moment, "environment": {"m": {"cpu": {}, "versions": {}}}}
    (tmp_path / "report").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"created": moment}))
    (tmp_path / "report/report.json").write_text(json.dumps({**report, "engines": [{**row, **changed}]}))
    record = demo.measured(tmp_path)
    assert [name for name, met in record["engines"][0]["met"].items() if not met] == missed
    assert record["met"] == {"float_top1": True, "openvino/int8": not missed}
