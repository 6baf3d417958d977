"""What makes `build` build again, and what does not."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import pytest
from small_run import FLOAT, INT8, write_small_run, write_variant

from edgeopt import Run, api, environment, resources
from edgeopt.backends.base import Availability
from edgeopt.backends.onnxruntime import OnnxRuntimeBackend
from edgeopt.config import load_target
from edgeopt.errors import BackendError
from edgeopt.registry import load_backend
from edgeopt.stages.build_plan import plan, source_onnx, target_folder
from edgeopt.stages.engines import engines

TEXT = resources.find("targets", "onnxruntime").read_text(encoding="utf-8")
EDITED = {
    "budget": (f"{TEXT}\n[budget]\nmax_drop_points = 0.5\n", {"max_drop_points": 0.5}),
    "match": (f'{TEXT}\n[match]\nmachine = "pdp11"\n', {"machine": "pdp11"}),
    "round_to": (TEXT.replace("round_to = 8", "round_to = 4"), 4),
    "min_int8_share_macs": (f"min_int8_share_macs = 0.25\n{TEXT}", 0.25),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Built for ONNX Runtime; tests build for it again."""
    return write_small_run(tmp_path_factory.mktemp("small") / "run")


@pytest.mark.parametrize("key", EDITED)
def test_a_target_edited_where_no_engine_depends_on_it_keeps_its_engines_and_is_recorded(
    small: Run, tmp_path: Path, key: str
) -> None:
    text, stated = EDITED[key]
    (tmp_path / "onnxruntime.toml").write_text(text)
    created = small.engines()[INT8]["created"]
    assert all(one.skipped for one in api.build(small, str(tmp_path / "onnxruntime.toml")))
    assert sorted(small.engines()) == [FLOAT, INT8]
    record = small.engines()[INT8]
    assert record["created"] == created
    assert record["fits_this_machine"] is (key != "match")
    found = record["profile"][key]
    assert (stated.items() <= found.items()) if isinstance(stated, dict) else (found == stated)


@pytest.mark.parametrize(("dot", "best"), [(True, "u8a8w"), (False, "u8a7w")])
def test_of_two_schemes_of_one_model_the_one_that_suits_the_cpu_is_built_with_the_flag_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dot: bool, best: str
) -> None:
    run = write_small_run(tmp_path / "run")
    write_variant(run, "int8-u8a8w", "u8a8w")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(environment, "has_int8_dot", lambda: dot)
    target, backend = load_target("onnxruntime"), OnnxRuntimeBackend()
    assert [item.scheme for item in plan(run, target, backend) if item.scheme] == [best]
    both = ["int8-u8a7w", "int8-u8a8w"]
    assert [item.variant for item in plan(run, target, backend, both) if item.scheme] == both, "named, both are wanted"


def test_runtimes_that_take_types_as_they_are_get_int8_with_a_float16_rest(small: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(small.path, tmp_path / "run"))
    export = run.path / "host/int8-u8a7w/export"
    shutil.copyfile(export / "model.onnx", export / "model.fp16.onnx")
    record = json.loads((export / "parity.json").read_text())
    stated = record["outputs"]["onnx"]
    record["outputs"]["onnx_fp16"] = {**stated, "path": stated["path"].replace("model.onnx", "model.fp16.onnx")}
    (export / "parity.json").write_text(json.dumps(record))
    for precision, rest in (("int8", "fp16"), ("fp16", "fp16"), ("fp32", "fp32")):
        for name in ("tensorrt", "tensorrt_rtx", "onnxruntime", "openvino"):
            half_wanted = rest == "fp16" and (precision == "fp16" or name.startswith("tensorrt"))
            source, _ = source_onnx(run, load_backend(name), "int8-u8a7w", precision)
            assert source.name == ("model.fp16.onnx" if half_wanted else "model.onnx"), (name, precision)


def test_another_machine_builds_beside_what_the_host_built_and_in_its_own_folder_again(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that copies of the run can be copied together again."""
    run = Run.open(shutil.copytree(small.path, tmp_path / "run"))
    assert target_folder(run, "onnxruntime") == "device/onnxruntime"
    monkeypatch.setattr(environment, "machine_id", lambda: "b" * 12)
    assert target_folder(run, "onnxruntime") == f"device/onnxruntime@{'b' * 12}"
    monkeypatch.setattr(environment, "host_id", lambda: "c" * 12)
    assert target_folder(run, "openvino") == f"device/openvino@{'b' * 12}", "the host may build for it yet"


def test_strict_asks_for_the_share_that_the_target_states_now(small: Run, tmp_path: Path) -> None:
    """Of an engine that was built before the target was edited."""
    target = tmp_path / "onnxruntime.toml"
    target.write_text(f"min_int8_share_macs = 0.25\n{TEXT}")
    api.build(small, str(target), strict=True)
    record = small.path / "device" / INT8 / "build.json"
    fusion = {**small.engines()[INT8]["fusion"], "int8_share_macs": 0.5, "int8_share": 0.5, "int8_layers": 1}
    record.write_text(json.dumps({**small.engines()[INT8], "fusion": fusion}))
    api.build(small, str(target), strict=True)
    target.write_text(TEXT)
    with pytest.raises(BackendError, match="onnxruntime asks for 100%"):
        api.build(small, str(target), strict=True)


def test_an_engine_of_another_version_is_recognized_before_it_is_loaded_and_built_again_in_its_place(
    small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime stands for TensorRT, which cannot run here: only the version that built a plan loads it."""
    monkeypatch.setattr(OnnxRuntimeBackend, "version_bound", True)
    for found in ("10.3.0", "10.8.0"):
        monkeypatch.setattr(OnnxRuntimeBackend, "availability", lambda self, v=found: Availability(True, version=v))
        monkeypatch.setattr(OnnxRuntimeBackend, "_open", _forbidden)
        if found == "10.8.0":
            reasons = {key: engines(small)[key].unusable() for key in (FLOAT, INT8)}
            assert set(reasons.values()) == {"it is for onnxruntime 10.3.0 alone, and here is 10.8.0"}
            with pytest.raises(BackendError, match=r"10\.3\.0 alone.*\n.*edgeopt build --target onnxruntime --force"):
                engines(small)[INT8].open()
        monkeypatch.setattr(OnnxRuntimeBackend, "_open", OPEN)
        assert not any(one.skipped for one in api.build(small, "onnxruntime"))
        assert all(one.skipped for one in api.build(small, "onnxruntime"))
        assert sorted(small.engines()) == [FLOAT, INT8], "no second folder beside the one that nothing loads"
        assert engines(small)[INT8].unusable() == ""


OPEN = OnnxRuntimeBackend._open


def _forbidden(*_: object) -> None:
    raise AssertionError("it was loaded")
