"""Networks of each kind have the share of int8 they are promised on both CPU runtimes; the table is that measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "engines"))

import engines  # noqa: E402  (a script of the benchmarks, whose networks are those tested)
import networks  # noqa: E402
from networks import NETWORKS  # noqa: E402

from edgeopt.registry import load_backend  # noqa: E402

FULL = [key for key, network in NETWORKS.items() if network.size == 224]


@pytest.mark.slow
@pytest.mark.parametrize("name", engines.BACKENDS)
@pytest.mark.parametrize("key", FULL)
def test_a_network_has_its_share_of_the_macs_in_int8(
    key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions without gates all of them; at 224 pixels, since gates and attention weigh otherwise at others."""
    monkeypatch.setattr(networks, "CALIBRATION_PICTURES", 4)  # where quantizers go does not depend on their number
    network, backend = NETWORKS[key], load_backend(name)
    ours = engines.built_engine(network, backend, networks.edgeopt_onnx(network, name, tmp_path), "int8", tmp_path)
    assert ours["int8_share_macs"] >= network.shares[name], ours["float_layers"]


def test_the_table_of_engines_is_the_one_measured_and_keeps_the_shares() -> None:
    measured = engines.read()
    written = engines.PAGE.read_text(encoding="utf-8").partition(engines.BEGIN)[2].partition(engines.END)[0]
    assert written.strip() == engines.tables(measured).strip(), "run: python benchmarks/engines/engines.py --table"
    for key, record in measured.items():
        for name, group in record["groups"].items():
            ours, backend = group["engines"][engines.OURS], name.partition(",")[0]
            assert ours["int8_share_macs"] >= NETWORKS[key].shares[backend]
