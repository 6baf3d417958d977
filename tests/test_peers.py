"""The head-to-head with other tools: who is in it, what their lines are, how folds pool, what the table says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_onnx

from edgeopt.backends.capability import processor
from edgeopt.backends.onnx_reader import read_onnx
from edgeopt.config import Target
from edgeopt.registry import backends, load_backend

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from peers import plain, registry  # noqa: E402  (scripts of the benchmarks)
from peers.registry import BY_KEY, PEERS, RECIPES, code_lines  # noqa: E402
from peers.table import BEGIN, COLUMNS, END, PAGE, RESULTS, pooled, sections, table, write_page  # noqa: E402


def test_every_tool_has_a_recipe_that_cites_its_guide_and_needs_only_that_tool() -> None:
    asked = {"edgeopt", "nncf", "onnxruntime", "nvidia-modelopt", "onnx-neural-compressor", "olive-ai"}
    assert {peer.package for peer in PEERS} == asked
    assert len(BY_KEY) == len(PEERS) == 10
    assert {peer.path for peer in PEERS} == {path for path in RECIPES.iterdir() if path.suffix in (".py", ".sh")}
    for peer in PEERS:
        text = peer.path.read_text(encoding="utf-8")
        assert "https://" in text or peer.package == "edgeopt", f"{peer.key} cites no guide"
        assert bool(peer.requirements) == bool(peer.venv)
        if peer.venv:
            assert "edgeopt" not in text, f"{peer.key} needs more than its tool"
            assert any(wanted.startswith(peer.package) for wanted in peer.requirements)


def test_lines_are_those_with_code(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text(
        '"""A docstring\nof two lines."""\n\nimport os  # counts once\n\n# does not\n'
        'def f():\n    """Nor this."""\n    return (\n        1,\n    )\n\n\nTEXT = """two\nlines"""\n'
    )
    assert code_lines(script) == 1 + 4 + 2
    shell = tmp_path / "recipe.sh"
    shell.write_text("# no\n\nedgeopt build --target openvino\n")
    assert code_lines(shell) == 1
    assert registry.BY_KEY["edgeopt-int8"].lines == 3


def _row(peer: str, runtime: str, right: str, windows: list[float], **more: Any) -> dict[str, Any]:
    layers = {"compute_layers": 10, "int8_layers": 0 if peer == "float" else 10, "int8_share_macs": 1.0}
    made = {"seconds": 60.0, "lines": 3, "version": "1.0", "top1_exact": None}
    made = dict.fromkeys(made) if peer == "float" else made
    figures: dict[str, Any] = {
        "size_bytes": 2**20,
        "throughput_ips": 100.0,
        "window_medians_ms": windows,
        "error": None,
    }
    figures["windows_by_start"] = [len(windows)]
    return {"peer": peer, "runtime": runtime, "right": right, **layers, **made, **figures, **more}


def _record(fold: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"cpu": {"name": "a CPU"}}
    return {
        "data": "emoji",
        "fold": fold,
        "folds": 3,
        "pictures": 100,
        "setting": {"size": [128, 96]},
        "session": {"machine": machine, "threads": 2},
        "rows": rows,
    }


def _planted() -> list[dict[str, Any]]:
    """Two folds; the machine is half as fast in the second, ratios are the same."""
    records = []
    for fold, slow in ((0, 1.0), (1, 2.0)):
        eager = [slow * ms for ms in (8.0, 8.4, 7.9, 8.1, 8.0, 8.2, 8.0)]
        rows = [
            _row("float", "pytorch", "1" * 90 + "0" * 10, eager),
            _row("float", "openvino", "1" * 90 + "0" * 10, [ms / 2 for ms in eager]),
            _row("edgeopt-int8", "openvino", "1" * 91 + "0" * 9, [ms / 4 for ms in eager]),
            _row("nncf-ptq", "openvino", "1" * 70 + "0" * 30, [ms * 1.5 for ms in eager]),
            _row("ort-default", "onnxruntime", "0" * 40 + "1" * 60, [ms / 3 for ms in eager], top1_exact=0.85),
            {"peer": "olive", "runtime": "-", "seconds": 9.0, "lines": 20, "version": None, "error": "Bad | thing"},
        ]
        if fold == 0:
            rows.append(_row("modelopt", "openvino", "1" * 90 + "0" * 10, [ms / 4 for ms in eager]))
        records.append(_record(fold, rows))
    return records


def test_folds_pool_picture_by_picture_and_window_by_window() -> None:
    found = {(row.peer, row.runtime): row for row in pooled(_planted())}
    ours, theirs = found["edgeopt-int8", "openvino"], found["nncf-ptq", "openvino"]
    assert (ours.drop.n, ours.drop.lost, ours.drop.gained, ours.drop.drop_points) == (200, 0, 2, -1.0)
    assert (theirs.drop.lost, theirs.drop.gained, theirs.drop.drop_points) == (40, 0, 20.0)
    eager = found["float", "pytorch"]
    ratio = ours.times_as_fast_as(eager)
    assert ratio is not None
    assert ratio == pytest.approx((4.0, 4.0, 4.0)), "windows pair within their own session"
    assert ours.p50 is not None
    assert ours.p50.low == pytest.approx(2.0, rel=0.1)
    assert ours.p50.high == pytest.approx(4.0, rel=0.1)
    half = found["modelopt", "openvino"]
    assert half.drop.n == 100, "only the fold that has it is compared"
    assert half.missing == {1: "not run"}
    assert found["olive", "-"].rows == {}


def test_intervals_reach_over_what_each_start_of_each_fold_showed() -> None:
    records = _planted()
    eager, *_ = records[1]["rows"]
    eager["windows_by_start"] = [5, 2]
    eager["window_medians_ms"] = [16.0] * 5 + [20.0] * 2
    for row in records[1]["rows"][1:]:
        if row.get("window_medians_ms"):
            row |= {"windows_by_start": [5, 2], "window_medians_ms": [4.0] * 7}
    found = {(row.peer, row.runtime): row for row in pooled(records)}
    ours = found["edgeopt-int8", "openvino"]
    assert ours.starts([0, 1]) == [7, 5, 2]  # of a fold that does not say, one
    ratio = ours.times_as_fast_as(found["float", "pytorch"])
    assert ratio == pytest.approx((4.0, 4.0, 5.0))


def test_the_table_shows_what_loses_and_why() -> None:
    lines = table(_planted()).splitlines()
    assert all(len(re.split(r"(?<!\\)\|", line)) == len(COLUMNS) + 2 for line in lines)
    cells = {line.split("|")[1].strip(): line for line in lines[2:]}
    ours = cells["edgeopt `compress --int8`"]
    assert "| 91.0 % (" in ours
    assert "| -1.00 (" in ours
    assert "| 4.00 (4.00 to 4.00) |" in ours
    assert "10 of 10 | 100% | 1.0 | 3 |" in ours
    assert "beaten" not in ours
    assert "**" not in ours
    theirs = cells["NNCF PTQ"]
    assert "**less accurate than float**" in theirs
    assert "**slower than the float model, eager**" in theirs
    assert "**slower than the float model on this runtime**" in theirs
    assert "beaten by edgeopt `compress --int8`: 6.00 times as fast, no less accurate" in theirs
    assert "85.0 % when sums do not saturate" in cells["ONNX Runtime `quantize_static`, defaults"]
    assert "**failed**: Bad \\| thing" in cells["Microsoft Olive, ONNX PTQ"]
    assert "fold 1: not run" in cells["NVIDIA Model Optimizer, ONNX int8"]


def test_edgeopt_is_shown_beaten_by_whom_it_is_beaten() -> None:
    records = _planted()
    for record in records:
        eager = record["rows"][0]["window_medians_ms"]
        record["rows"].append(_row("ort-tuned", "onnxruntime", "1" * 91 + "0" * 9, [ms / 5 for ms in eager]))
    ours = next(line for line in table(records).splitlines() if "edgeopt `compress" in line)
    assert "beaten by ONNX Runtime `quantize_static`, tuned on ONNX Runtime: 1.25 times as fast" in ours
    for record in records:
        for row in record["rows"]:
            row.pop("windows_by_start", None)
    assert "beaten" not in "".join(table(records)), "of starts that are not told apart, ratios may be off"


def test_who_is_not_certainly_faster_or_is_right_less_often_beats_nobody() -> None:
    records = _planted()
    for record in records:
        eager = record["rows"][0]["window_medians_ms"]
        uneven = [ms / 4 * factor for ms, factor in zip(eager, (0.7, 1.3, 0.7, 1.3, 0.7, 0.7, 1.3), strict=True)]
        record["rows"].append(_row("ort-tuned", "onnxruntime", "1" * 91 + "0" * 9, uneven))
        record["rows"].append(_row("nncf-qat", "openvino", "1" * 89 + "0" * 11, [ms / 9 for ms in eager]))
    (ours,) = (row for row in pooled(records) if (row.peer, row.runtime) == ("edgeopt-int8", "openvino"))
    (tuned,) = (row for row in pooled(records) if row.peer == "ort-tuned")
    ratio = ours.times_as_fast_as(tuned)
    assert ratio is not None
    assert ratio.value < 1 < ratio.high, "faster by the median, and not for certain"
    lines = table(records).splitlines()
    assert "beaten" not in next(line for line in lines if "edgeopt `compress" in line)
    (qat,) = (line for line in lines if line.startswith("| NNCF PTQ + QAT "))
    assert "| 1.00 (" in qat
    assert "less accurate" not in qat, "one picture of a hundred may be luck"


def test_a_recipe_runs_once_on_its_inputs_and_what_failed_again_on_request(tmp_path: Path) -> None:
    from peers.inputs import Case
    from peers.make import make

    recipe, again = tmp_path / "recipe.py", tmp_path / "again"
    recipe.write_text(
        "import os, pathlib, sys\n"
        f"runs = pathlib.Path({str(tmp_path / 'runs.txt')!r})\n"
        "runs.open('a').write(f'{os.getcwd()} {os.environ.get(\"PYTHONPATH\")}\\n')\n"
        f"if not pathlib.Path({str(again)!r}).exists():\n"
        "    raise RuntimeError('the guide of this tool\\nis wrong here')\n"
        "pathlib.Path('model.onnx').write_bytes(b'made')\n"
    )
    peer = registry.Peer("planted", "Planted", str(recipe), "numpy")
    (tmp_path / "work/inputs").mkdir(parents=True)

    def made(retry: bool = False, **inputs: object) -> dict[str, Any]:
        case = Case("digits", trial=True)
        options: dict[str, Any] = {"venvs": tmp_path / "venvs", "timeout": 60, "retry": retry}
        return make(peer, case, tmp_path / "work", {"run": "run", **inputs}, **options)

    def runs() -> int:
        return len((tmp_path / "runs.txt").read_text().splitlines())

    assert made()["error"] == made()["error"] == "RuntimeError: the guide of this tool"
    assert runs() == 1, "what failed is a row with its error"
    again.touch()
    found = made(retry=True)
    assert (found["error"], found["lines"], runs()) == (None, code_lines(recipe), 2)
    assert found["version"]
    assert made(retry=True) == found
    assert runs() == 2, "what was made is not made again"
    made(calibration_sha256="of other pictures")
    assert runs() == 3
    assert (tmp_path / "work/peers/planted/model.onnx").read_bytes() == b"made"


def test_the_page_has_a_table_for_each_dataset_measured(tmp_path: Path) -> None:
    page, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for record in _planted():
        (results / f"emoji-{record['fold']}.json").write_text(json.dumps(record))
    write_page(page, results)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "\nold\n" not in text
    assert "### emoji\n\n200 test pictures of 96x128 in 2 of 3 folds; a CPU, 2 threads" in text


def test_the_table_of_peers_is_the_one_measured() -> None:
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert written.strip() == sections(RESULTS), "run: python benchmarks/peers/run.py --table"


@pytest.mark.slow
def test_the_command_makes_a_tools_engines_and_measures_them_beside_eager_pytorch(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "peers" / "run.py"), "--data", "digits", "--trial", "--seconds", "1"]
    command += ["--work", str(tmp_path), "--only", "ort-default"]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    subprocess.run(command, check=True, env=environment)
    work = tmp_path / "digits-0-trial"
    record = json.loads((work / "digits-0-trial.json").read_text())
    rows = {(row["runtime"], row["peer"]): row for row in record["rows"]}
    assert set(rows) == {
        ("pytorch", "float"),
        *((runtime, peer) for runtime in ("onnxruntime", "openvino") for peer in ("float", "ort-default")),
    }
    for row in rows.values():
        assert row["error"] is None
        assert len(row["right"]) == record["pictures"] == 121
        assert row["p50_ms"] > 0
    # The same float model in every runtime; int8 there, and not the same file.
    assert len({rows[runtime, "float"]["right"] for runtime in ("pytorch", "onnxruntime", "openvino")}) == 1
    assert rows["openvino", "float"]["int8_layers"] == 0 < rows["openvino", "ort-default"]["int8_layers"]
    assert rows["onnxruntime", "ort-default"]["size_bytes"] < rows["onnxruntime", "float"]["size_bytes"] / 2
    assert rows["onnxruntime", "ort-default"]["lines"] == BY_KEY["ort-default"].lines
    made = work / "peers" / "ort-default" / "model.onnx"
    before = made.stat().st_mtime_ns
    subprocess.run([*command, "--make"], check=True, env=environment)
    assert made.stat().st_mtime_ns == before, "what was made is not made again"


def test_files_of_others_are_opened_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(plain.PLUGIN))
    assert plain.NAME in backends(), "the processes of a benchmark find it by its entry point"
    onnx = tmp_path / "model.onnx"
    tiny_onnx.write_qdq(onnx, "u8a8w")
    assert read_onnx(onnx).weights_need_8_bits()
    target = Target(schema=1, name=plain.NAME, title="plain", backend=plain.NAME)
    with load_backend(plain.NAME).open(onnx, target, precision="int8", threads=1) as session:
        assert "options" not in session.describe()
    with load_backend("onnxruntime").open(onnx, target, precision="int8", threads=1) as session:
        assert ("options" in session.describe()) == (processor() == "x86"), "edgeopt's own asks for exact sums there"
