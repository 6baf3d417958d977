"""The page of the emoji benchmark: folds are pooled picture by picture, and limits are judged on what is pooled."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "compression"))

import emoji_table  # noqa: E402  (a part of a script of the benchmarks)


def _fold(number: int, *, lost: int, seconds: float = 1.0) -> dict[str, Any]:
    """200 pictures, 150 answered rightly in float; int8 loses the first ``lost`` of them."""
    right = np.arange(200) < 150
    int8 = right & (np.arange(200) >= lost)
    rows = {"float": {"title": "float", **emoji_table.packed(right)}}
    for runtime in emoji_table.RUNTIMES:
        rows[f"int8-{runtime}"] = {"title": "int8", "runtime": runtime, **emoji_table.packed(int8)}
    setting = {"model": "m", "size": 8, "epochs": 1, "pretrained": True, "recovery_epochs": None, "qat_epochs": None}
    return {
        "name": "lite0",
        "fold": number,
        "setting": setting,
        "rows": rows,
        "minutes": {"float": seconds},
        "refused": {"ladder": "no rung"},
        "bench": {"engines": {"prune-openvino": {"p50_ms": 1.0, "times_int8": [1.5, 1.3, 1.6]}}},
        "environment": {"cpu": {"name": "a CPU", "cores": 2}},
    }


def test_right_answers_come_back_from_their_bits() -> None:
    for count in (1, 8, 13):
        right = np.random.default_rng(count).random(count) < 0.5
        row = json.loads(json.dumps(emoji_table.packed(right)))
        assert (emoji_table.unpacked(row) == right).all()


def test_folds_are_pooled_over_their_pictures() -> None:
    found = emoji_table.paired([_fold(0, lost=0), _fold(1, lost=4)], "float", "int8-openvino")
    assert found is not None
    assert (found.n, found.lost, found.gained) == (400, 4, 0)
    assert found.drop_points == pytest.approx(1.0)
    assert emoji_table.paired([_fold(0, lost=0)], "float", "prune-openvino") is None


def test_the_page_says_what_is_missed(tmp_path: Path) -> None:
    folder = tmp_path / "emoji"
    folder.mkdir()
    for number in range(2):
        (folder / f"lite0-{number}.json").write_text(json.dumps(_fold(number, lost=4)))
    emoji_table.write_page(folder)
    page = folder.with_suffix(".md").read_text()
    assert "| int8 | OpenVINO | 73.00% of 400 | 2.00 [" in page
    assert "**missed**: int8-openvino against float: drop 2.00" in page
    assert "**missed**: the pruned int8 engine is at least 1.30 times" in page
    assert "- refused (fold 1): ladder: no rung" in page
    for number in range(2):
        (folder / f"lite0-{number}.json").write_text(json.dumps(_fold(number, lost=0)))
    emoji_table.write_page(folder)
    assert "- met: int8-openvino against float: drop 0.00" in folder.with_suffix(".md").read_text()


def test_the_page_is_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "emoji"
    folder.mkdir()
    for path in (ROOT / "benchmarks/compression/emoji").glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    emoji_table.write_page(folder)
    written = (ROOT / "benchmarks/compression/emoji.md").read_text()
    assert written == folder.with_suffix(".md").read_text(), "run: python benchmarks/compression/emoji.py --table"
