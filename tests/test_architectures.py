"""Well-known architectures go prune -> QAT -> reload -> QDQ ONNX -> ONNX Runtime; the table is the one measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "compression"))

import architectures  # noqa: E402  (a script of the benchmarks, whose table of architectures is the one tested)
from architectures import ARCHITECTURES, Architecture, push, table  # noqa: E402

MEASURED = json.loads(architectures.OUT.read_text())
ROWS = MEASURED["architectures"]
GO_THROUGH = [one for one in ARCHITECTURES if one.key in ROWS and "refused" not in ROWS[one.key]]
#: Those whose parity rests on the allowance for noise after few epochs pass one day and fail the next.
STEADY = [one for one in GO_THROUGH if ROWS[one.key]["mean_difference_over_std"] <= 0.05]


@pytest.mark.slow
@pytest.mark.parametrize("one", STEADY, ids=[one.key for one in STEADY])
def test_an_architecture_is_pruned_trained_in_int8_and_answers_as_trained(
    one: Architecture, pictures: Path, tmp_path: Path
) -> None:
    _judge(one, push(one, pictures, tmp_path / "run"))


def test_what_was_measured_reaches_what_the_test_asks() -> None:
    assert list(ROWS) == [one.key for one in ARCHITECTURES if one.key in ROWS]
    assert len(GO_THROUGH) >= 6
    for one in GO_THROUGH:
        row = ROWS[one.key]
        assert (row["model"], row["image_size"], row["arguments"]) == (one.model, one.image_size, one.arguments)
        _judge(one, row)


def test_the_table_of_architectures_is_the_one_measured() -> None:
    written = architectures.PAGE.read_text(encoding="utf-8")
    assert written == table(MEASURED), "run: python benchmarks/compression/architectures.py --table"
    for one in ARCHITECTURES:
        if "refused" in ROWS.get(one.key, {}):
            assert ROWS[one.key]["refused"] in written, "what cannot is there with the reason"


def _judge(one: Architecture, row: dict[str, object]) -> None:
    macs = float(row["macs_after"]) / float(row["macs_before"])  # type: ignore[arg-type]
    assert macs == pytest.approx(1 - architectures.PRUNE, abs=0.021)
    assert int(row["parameters_after"]) < int(row["parameters_before"])  # type: ignore[call-overload]
    assert row["parity_ok"]
    assert row["int8_share_macs"] is not None
    assert float(row["int8_share_macs"]) >= one.share_macs  # type: ignore[arg-type]
