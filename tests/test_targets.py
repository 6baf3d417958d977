"""The shipped targets and calibration recipes: data that loads, is sourced, and is listed in its README."""

from __future__ import annotations

import ast
import os
import platform
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from edgeopt import environment, nvidia, registry, resources
from edgeopt.backends import capability
from edgeopt.config import CalibrationRecipe, Match, SessionOptions, Target, load_calibration, load_target
from edgeopt.fit import fit
from edgeopt.records.fields import DeviceCommand

ROOT = Path(__file__).resolve().parent.parent
TARGETS = resources.names("targets")
CALIBRATIONS = resources.names("calibration")


def test_the_promised_targets_and_recipes_are_shipped() -> None:
    assert {
        "onnxruntime", "openvino", "tensorrt", "raspberry-pi-5", "intel-n100", "jetson-orin-nano", "rtx-desktop",
    } <= set(TARGETS)  # fmt: skip
    assert len(TARGETS) >= 14
    assert {"fast", "default", "thorough"} <= set(CALIBRATIONS)


def _processor(target: Target) -> str:
    """The row of the capability table for the device that a target describes."""
    if target.backend.startswith("tensorrt"):
        return "nvidia"
    if target.session.device != "CPU":
        return f"intel-{target.session.device.lower()}"
    if target.match.machine == "aarch64":
        return "arm64"
    return "x86" if target.match.cpu == "Ryzen" else "x86-dot"  # of Zen 3 and earlier; the N100 has AVX-VNNI


def test_every_field_of_a_target_is_used_by_the_code() -> None:
    """As an attribute or a key, anywhere but where it is declared; budgets are judged by all their names."""
    used: set[str] = set()
    for path in (ROOT / "edgeopt").rglob("*.py"):
        if path.name == "target_tables.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)
    fields = {*Target.model_fields, *Match.model_fields, *SessionOptions.model_fields}
    assert fields - used == set()


@pytest.mark.parametrize(
    ("stated", "gpu", "found"), [("L4", "NVIDIA L4", True), ("L4", "NVIDIA L40S", False), ("nvidia", "Tesla T4", True)]
)
def test_a_gpu_is_recognized_by_whole_words(
    stated: str, gpu: str, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: ({"name": gpu},))
    assert environment.matches(Match(gpu=stated)) is found


def test_a_cpu_is_recognized_by_a_part_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpu", lambda: {"name": "Intel(R) N100"})
    assert environment.misfits(Match(cpu="n100")) == []
    assert environment.misfits(Match(cpu="Ryzen")) == ["the CPU is Intel(R) N100, not Ryzen"]


class Driver:
    """``libcuda`` of a Jetson, as far as it is asked."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:
        name.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0


def test_a_gpu_is_found_by_its_driver_where_nvidia_smi_is_not_with_a_planted_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nvidia.shutil, "which", lambda name: None)
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name: Driver())
    found = nvidia.gpus.__wrapped__()
    assert found == ({"name": "Orin", "compute_capability": "8.7"},)
    monkeypatch.setattr(environment, "gpus", lambda: found)
    assert not any("no NVIDIA GPU" in why for why in environment.misfits(load_target("tensorrt").match))


def test_how_a_gpu_is_before_and_after_is_in_the_machines_record_with_a_planted_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def planted(state: str) -> dict[str, Any]:
        program.write_text(
            "#!/bin/sh\ncase $1 in *name*) echo 'NVIDIA L4, 570.1, 23034 MiB, 8.9';; "
            f"*throttle*) {state};; *) exit 2;; esac\n"
        )
        program.chmod(0o755)
        monkeypatch.setattr(environment, "gpus", nvidia.gpus.__wrapped__)
        (gpu,) = environment.record()["gpus"]
        return dict(gpu)

    name = {"name": "NVIDIA L4", "driver": "570.1", "memory": "23034 MiB", "compute_capability": "8.9"}
    cool = planted("echo '41, 2040, 0x0000000000000001'")  # idle is not slowed down
    assert cool == {**name, "temperature_c": 41.0, "clock_mhz": 2040.0, "slowed": ""}
    hot = planted("echo '92, 810, 0x0000000000000060'")
    assert hot == {**name, "temperature_c": 92.0, "clock_mhz": 810.0, "slowed": "heat, heat, by hardware"}
    assert planted("echo '[N/A], [N/A], [N/A]'") == {**name, "slowed": ""}
    assert planted("echo 'Field is not a valid field to query.'; exit 2") == name


def test_this_machine_fits_what_it_is_and_the_rest_says_why_not() -> None:
    here = platform.machine()
    board = Target(schema=1, title="t", backend="onnxruntime", match=Match(machine="sparc", board="Toaster"))
    assert [why.split(",")[0] for why in fit(board).why] == [f"the machine is {here}", "the board is not stated"]
    assert fit(load_target("onnxruntime")).fits
    assert fit(load_target("onnxruntime")).why[0] == "it describes any machine"
    assert any("1024 threads are stated" in why for why in _why(session=SessionOptions(threads=1024)))
    assert any(
        "no CUDAExecutionProvider" in why for why in _why(session=SessionOptions(provider="CUDAExecutionProvider"))
    )
    npu = Target(schema=1, title="t", backend="openvino", session=SessionOptions(device="NPU"))
    assert any("OpenVINO has no device NPU here, only" in why for why in fit(npu).why)
    if capability.processor() == "x86":
        assert any(
            "does not compute u8a8w exactly, but u8a7w" in why for why in _why(backend="openvino", scheme="u8a8w")
        )


def test_a_scheme_that_this_cpu_does_not_compute_exactly_does_not_fit_with_the_flag_planted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for dot, said in ((False, ["this machine does not compute u8a8w exactly, but u8a7w"]), (True, [])):
        monkeypatch.setattr(environment, "has_int8_dot", lambda dot=dot: dot)
        why = _why(backend="openvino", scheme="u8a8w")
        assert [one for one in why if "exactly" in one] == said


def _why(backend: str = "onnxruntime", **values: object) -> tuple[str, ...]:
    return fit(Target(schema=1, title="t", backend=backend, **values)).why  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_consistent_and_sourced(name: str) -> None:
    target = load_target(name)
    assert isinstance(target, Target)
    assert target.name == name
    assert target.sources
    backend = registry.load_backend(target.backend)
    assert target.precision in backend.precisions
    if target.scheme is not None:
        assert target.scheme in capability.schemes_for(target.backend, _processor(target))
    if target.backend in ("tensorrt", "tensorrt_rtx"):
        assert target.scheme == "s8a8w"
        assert target.match.gpu or target.match.board
    if target.status == "emulated":
        assert any("qemu" in source for source in target.sources)
    if target.status == "measured":
        assert any("measured" in source for source in target.sources)


def test_the_plain_cpu_targets_leave_the_scheme_to_the_machine() -> None:
    for name in ("onnxruntime", "openvino"):
        target = load_target(name)
        assert (target.backend, target.scheme) == (name, None)
        assert target.match == Target(schema=1, title="t", backend="b").match


def test_a_device_with_another_cpu_states_its_scheme() -> None:
    """Compression happens elsewhere, so "what this machine prefers" would be about the wrong machine."""
    for name in TARGETS:
        target = load_target(name)
        if target.match.machine or target.match.cpu or target.match.board:
            assert target.scheme is not None


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_a_calibration_recipe_loads(name: str) -> None:
    recipe = load_calibration(name)
    assert isinstance(recipe, CalibrationRecipe)
    assert recipe.name == name


def test_calibration_recipes_grow_from_fast_to_thorough() -> None:
    fast, default, thorough = (load_calibration(name) for name in ("fast", "default", "thorough"))
    assert (fast.count, default.count, thorough.count) == (64, 300, 1000)
    assert default == CalibrationRecipe(schema=1, name="default")
    assert (default.selection, thorough.selection) == ("stratified", "diverse")


def test_a_file_of_ones_own_is_named_as_it_was_typed_wherever_a_command_is(tmp_path: Path) -> None:
    text = resources.find("targets", "onnxruntime").read_text()
    known = TypeAdapter(DeviceCommand)
    for typed, command in (
        (f"{tmp_path}/my-board.toml", f"edgeopt build --target {tmp_path}/my-board.toml"),
        (f"{tmp_path}/my board.toml", f"edgeopt build --target '{tmp_path}/my board.toml'"),
        (f"{tmp_path}/a$b.toml", "edgeopt build --target 'a$b'"),  # not shown to be typed into a shell
    ):
        Path(typed).write_text(text)
        target = load_target(typed)
        assert (target.name, target.build_command) == (Path(typed).stem, command)
        if "$" not in typed:
            assert known.validate_python(command) == command
    assert load_target("onnxruntime").build_command == "edgeopt build --target onnxruntime"
    for strange in ("x'; rm -rf ~; '.toml", "a;b.toml", "-x.toml", "a\nb.toml", "a/b"):
        with pytest.raises(ValidationError):
            known.validate_python(f"edgeopt build --target {strange}")
        with pytest.raises(ValidationError):
            Target(schema=1, title="t", backend="onnxruntime", typed=strange)


@pytest.mark.parametrize("kind", ["targets", "calibration"])
def test_the_readme_lists_exactly_what_is_shipped(kind: resources.Kind) -> None:
    text = (resources.folder(kind) / "README.md").read_text(encoding="utf-8")
    table = text[text.index("|---|") :]
    listed = re.findall(r"^\| `([^`]+)` \|", table[: table.index("\n\n")], flags=re.MULTILINE)
    assert sorted(listed) == resources.names(kind)


def test_the_targets_readme_states_each_status_as_it_is() -> None:
    text = (resources.folder("targets") / "README.md").read_text(encoding="utf-8")
    for name in TARGETS:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.rstrip().endswith(f"{load_target(name).status} |")
        assert all(key in text for key in Target.model_fields if key not in ("schema_", "name", "typed"))


def test_data_folders_hold_data_only() -> None:
    for kind in ("targets", "calibration"):
        suffixes = {path.suffix for path in resources.folder(kind).iterdir()}  # type: ignore[arg-type]
        assert suffixes <= {".toml", ".md"}
