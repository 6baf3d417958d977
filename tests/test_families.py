"""One model of each family goes finetune -> int8 -> ONNX Runtime; and the table in the docs is the one measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import families  # noqa: E402  (a script of the benchmarks, whose table of families is the one tested)
from families import FAMILIES, Family, push, table  # noqa: E402

MEASURED = json.loads(families.OUT.read_text())
#: What a family is held to is known of those that were measured; the table in the docs says which were not.
CHOSEN = [family for family in FAMILIES if family.key in MEASURED["families"]]


@pytest.mark.slow
@pytest.mark.parametrize("family", CHOSEN, ids=[family.key for family in CHOSEN])
def test_a_model_of_the_family_runs_in_int8_and_answers_as_trained(
    family: Family, pictures: Path, tmp_path: Path
) -> None:
    record = push(family, pictures, tmp_path / "run")
    assert record["parity_ok"]
    assert record["int8_share"] >= family.share, record["float_layers"]
    assert record["int8_share_macs"] is not None
    assert record["int8_share_macs"] >= family.share_macs, record["float_layers"]
    assert family.left_in_float or not record["float_layers"], "what stays in float is said"


def test_the_table_of_families_is_the_one_measured() -> None:
    page = families.PAGE.read_text(encoding="utf-8")
    written = page.partition(families.BEGIN)[2].partition(families.END)[0]
    assert written.strip() == table(MEASURED), "run: python benchmarks/families.py --table"


def test_what_was_measured_reaches_what_the_test_asks_of_the_family() -> None:
    measured = MEASURED["families"]
    assert list(measured) == [family.key for family in CHOSEN]
    for family in CHOSEN:
        row = measured[family.key]
        stated = (row["model"], row["image_size"], row["arguments"], row["epochs"])
        assert stated == (family.model, family.image_size, family.arguments, family.epochs)
        assert row["parity_ok"]
        assert row["int8_share"] >= family.share
        assert row["int8_share_macs"] >= family.share_macs
        assert bool(row["float_layers"]) == bool(row["left_in_float"])
