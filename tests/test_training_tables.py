"""The README's tables of training are what the JSON files of the benchmarks hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import training_tables  # noqa: E402  (a script of the benchmarks)


@pytest.mark.parametrize("name", ["accuracy", "speed"])
def test_the_table_is_the_one_measured(name: str) -> None:
    page = training_tables.PAGE.read_text(encoding="utf-8")
    assert page.count(training_tables.begin(name)) == 1
    assert training_tables.written(page, name) == training_tables.tables()[name], (
        "run: python benchmarks/training_tables.py"
    )


def test_the_seconds_of_choosing_are_won_back_by_what_each_picture_saves() -> None:
    # 100 pictures in 1 s once chosen, in 5 s with the choosing: 4 s; each picture saves 10 ms of the other's 20.
    assert training_tables.ahead_after(50.0, 100.0, 20.0, 100) == "400 pictures"
    assert training_tables.ahead_after(100.0, 100.0, 20.0, 100) == "never"


def test_the_readme_says_what_choosing_costs_as_measured() -> None:
    """The sentence under the table: its seconds, and that every short training was slower."""
    record = json.loads((ROOT / "benchmarks/training_speed.json").read_text())
    trained, seconds = record["pictures"] * record["epochs"], []
    for model in record["models"].values():
        medians = [model["over_timm"][figure]["medians"]["edgeopt"] for figure in ("with_setup", "images_per_second")]
        seconds.append(trained / medians[0] - trained / medians[1])
        assert all(model[f"over_{loop}"]["with_setup"]["ci"][1] < 1 for loop in training_tables.LOOPS)
    assert f"takes edgeopt {min(seconds):.0f} to {max(seconds):.0f} seconds" in training_tables.PAGE.read_text()
    assert (record["epochs"], record["pictures"]) == (3, 256)
