"""The doctor: each thing that can be wrong with a machine is found on a machine made to look so."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgeopt import allotment, doctor, environment
from edgeopt.backends import tensorrt
from edgeopt.backends.base import Availability
from edgeopt.doctor import Finding, examine
from edgeopt.errors import MissingBackendError

GIB = 2**30
Fake = Callable[[Mapping[str, str]], None]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Give the machine these system files, and no others."""

    def fake(content: Mapping[str, str]) -> None:
        for module in (allotment, environment):
            monkeypatch.setattr(module, "system_file", lambda path: content.get(path, ""))
        environment.cpu.cache_clear()

    yield fake  # type: ignore[misc]
    environment.cpu.cache_clear()


def found(name: str) -> Finding:
    (finding,) = [item for item in examine() if item.name == name]
    return finding


def test_every_finding_that_is_not_ok_says_what_it_costs() -> None:
    for item in examine():
        assert item.text
        if item.state != "ok":
            assert item.cost
        if item.state == "missing":
            assert item.fix
        assert item.to_json()["ok"] == (item.state != "missing")


def test_a_cpu_without_vnni_is_noted_and_one_with_it_is_fine(files: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    files({"/proc/cpuinfo": "model name : Old\nflags : sse avx2"})
    assert found("cpu").state == "note"
    assert "u8a7w" in found("cpu").cost
    files({"/proc/cpuinfo": "model name : New\nflags : sse avx2 avx512_vnni"})
    assert found("cpu").state == "ok"


FREQUENCY = "/sys/devices/system/cpu/cpu0/cpufreq/"


@pytest.mark.parametrize(
    ("content", "text", "fix"),
    [
        (
            {FREQUENCY + "scaling_governor": "powersave", FREQUENCY + "scaling_driver": "acpi-cpufreq"},
            "powersave",
            "performance",
        ),
        (
            {FREQUENCY + "scaling_max_freq": "800000", FREQUENCY + "cpuinfo_max_freq": "3400000"},
            "capped at 0.8 of 3.4 GHz",
            "3400000",
        ),
        ({"/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "7"}, "heat 7 times", "cool"),
        ({"/sys/devices/platform/soc/soc:firmware/get_throttled": "0x50005"}, "under-voltage", "power supply"),
        ({"/sys/devices/platform/soc/soc:firmware/get_throttled": "40000"}, "heat", "cool"),
    ],
)
def test_a_slowed_cpu_is_noted(files: Fake, content: Mapping[str, str], text: str, fix: str) -> None:
    files(content)
    assert found("speed").state == "note"
    assert text in found("speed").text
    assert fix in found("speed").fix


@pytest.mark.parametrize(
    "content",
    [
        {},
        {FREQUENCY + "scaling_governor": "powersave", FREQUENCY + "scaling_driver": "intel_pstate"},  # its fast one
        {"/sys/devices/platform/soc/soc:firmware/get_throttled": "0x0"},
        {FREQUENCY + "scaling_max_freq": "3400000", FREQUENCY + "cpuinfo_max_freq": "3400000"},
    ],
)
def test_a_cpu_that_is_not_slowed_is_not_accused(files: Fake, content: Mapping[str, str]) -> None:
    files(content)
    assert found("speed").state == "ok"


@pytest.mark.parametrize(("total", "free", "state"), [(2, 1, "missing"), (8, 1, "note"), (8, 6, "ok"), (0, 0, "ok")])
def test_memory(monkeypatch: pytest.MonkeyPatch, total: int, free: int, state: str) -> None:
    monkeypatch.setattr(allotment, "memory_bytes", lambda: total * GIB)
    monkeypatch.setattr(allotment, "available_bytes", lambda: free * GIB)
    assert found("memory").state == state


def test_available_memory_is_cut_by_the_cgroup(files: Fake) -> None:
    files({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   4096 kB"})
    assert allotment.available_bytes() == 4 * 2**20
    files(
        {
            "/proc/meminfo": "MemAvailable:   4096 kB",
            "/sys/fs/cgroup/memory.max": str(3 * 2**20),
            "/sys/fs/cgroup/memory.current": str(2**20),
        }
    )
    assert allotment.available_bytes() == 2 * 2**20


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        ({"memory.max": "max", "memory.current": "5"}, 2**40),
        ({"memory.max": "3000", "memory.current": "5"}, 3000),
        ({"user.slice/memory.max": "2000", "user.slice/memory.current": "5"}, 2000),
        ({"user.slice/job/memory.max": "9000", "user.slice/job/memory.current": "5"}, 9000),
        ({"memory/memory.limit_in_bytes": "4000", "memory/memory.usage_in_bytes": "5"}, 4000),
        ({"memory/batch/7/memory.limit_in_bytes": "4000", "memory/batch/7/memory.usage_in_bytes": "5"}, 4000),
    ],
)
def test_memory_that_can_be_used_is_cut_by_every_cgroup(
    files: Fake, monkeypatch: pytest.MonkeyPatch, content: Mapping[str, str], limit: int
) -> None:
    monkeypatch.setattr(allotment, "memory_bytes", lambda: 2**40)
    groups = {"/proc/self/cgroup": "9:name=systemd:/\n4:memory,cpu:/batch/7\n0::/user.slice/job"}
    files({**groups, **{f"/sys/fs/cgroup/{name}": text for name, text in content.items()}})
    assert allotment.usable_memory_bytes() == limit


@pytest.mark.parametrize(
    ("content", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"user.slice/cpu.max": "50000 100000", "cpu.max": "150000 100000"}, 0.5),
        ({"user.slice/job/cpu.max": "250000 100000"}, 2.5),
        ({"cpu/batch/7/cpu.cfs_quota_us": "50000", "cpu/batch/7/cpu.cfs_period_us": "20000"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_cores_are_cut_by_every_cgroup_and_the_machines_record_says_so(
    files: Fake, monkeypatch: pytest.MonkeyPatch, content: Mapping[str, str], quota: float | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    groups = {"/proc/self/cgroup": "9:name=systemd:/\n4:memory,cpu:/batch/7\n0::/user.slice/job"}
    files({**groups, **{f"/sys/fs/cgroup/{name}": text for name, text in content.items()}})
    assert allotment.usable_cores() == (4 if quota is None else -(-quota // 1))
    record = environment.record()
    assert (record["cpu_quota"], record["cpu"]["cores"]) == (quota, allotment.usable_cores())


def test_a_limit_of_memory_that_no_machine_reaches_is_none(files: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allotment, "memory_bytes", lambda: 2**33)
    folder = "/sys/fs/cgroup/memory/memory."
    for limit, stated in ((9223372036854771712, None), (2**32, 2**32)):
        lines = {"/proc/self/cgroup": "4:memory:/", f"{folder}limit_in_bytes": str(limit)}
        files({**lines, f"{folder}usage_in_bytes": "1"})
        assert environment.record()["memory_limit_bytes"] == stated


def test_the_record_holds_what_may_bend_a_measurement(files: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    files(
        {
            "/proc/cpuinfo": "model name : A CPU\nflags : fpu avx2 avx512_vnni\ncpu MHz : 1200.5\n",
            f"{FREQUENCY}scaling_governor": "powersave",
            f"{FREQUENCY}scaling_cur_freq": "800000",
            "/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "7",
            "/sys/class/thermal/thermal_zone0/temp": "41000",
            "/sys/class/thermal/thermal_zone1/temp": "67500",
        }
    )
    zones = [Path(f"/sys/class/thermal/thermal_zone{zone}/temp") for zone in (0, 1)]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: zones if "thermal" in str(self) else [])
    record = environment.record()
    assert (record["cpu"]["name"], record["cpu"]["flags"]) == ("A CPU", ["avx2", "avx512_vnni"])
    assert (record["governor"], record["frequency_mhz"], record["temperature_c"]) == ("powersave", 800.0, 67.5)
    assert "heat 7 times" in record["throttled"]
    assert record["memory_bytes"] == allotment.memory_bytes()
    assert record["load_1m"] >= 0
    assert {"edgeopt", "numpy"} <= set(record["versions"])
    other = environment.machine_id()
    files({"/proc/cpuinfo": "model name : A CPU\nflags : fpu avx2\ncpu MHz : 1200.5\n"})
    assert environment.frequency_mhz() == 1200.5
    assert environment.machine_id() != other, "engines are built for what a CPU can"


def test_a_folder_in_memory_is_told_from_one_on_a_disk(files: Fake, tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    mounts = "22 27 0:21 / /proc rw - proc proc rw\n25 24 {}:{} / /x rw shared:7 - {} none rw"
    for kind, memory in (("tmpfs", True), ("ext4", False)):
        files({"/proc/self/mountinfo": mounts.format(os.major(device), os.minor(device), kind)})
        assert allotment.is_memory(tmp_path) is memory
    files({})
    assert not allotment.is_memory(tmp_path)


def test_a_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(total=9, used=8, free=GIB))
    assert found("disk").state == "note"


def test_no_compiler_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert found("compiler").state == "note"
    assert "g++" in found("compiler").fix


def test_both_onnxruntime_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "versions", lambda names=(): dict.fromkeys(names, "1.31"))
    assert found("onnxruntime pair").state == "missing"
    assert "pip uninstall" in found("onnxruntime pair").fix


def _with_gpu_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment.versions

    def versions(names: tuple[str, ...] = ()) -> dict[str, str]:
        return {"onnxruntime-gpu": "1.31"} if "onnxruntime-gpu" in names else real(names)

    monkeypatch.setattr(environment, "versions", versions)


def test_a_cuda_provider_that_would_fall_back_is_found_by_opening_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime here is the CPU's, which does just what a GPU's does without CUDA: it falls back."""
    _with_gpu_package(monkeypatch)
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        finding = found("onnxruntime on cuda")
    assert finding.state == "missing"
    assert "CPU" in finding.cost


def test_a_cuda_provider_that_loads_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_gpu_package(monkeypatch)

    class Session:
        def __init__(self, model: bytes, providers: list[str]) -> None:
            self.providers = providers

        def get_providers(self) -> list[str]:
            return self.providers

    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=Session))
    assert doctor._cuda_provider().state == "ok"


def test_on_a_jetson_the_systems_tensorrt_is_pointed_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.setattr(tensorrt, "SYSTEM_TENSORRT", (str(tmp_path),))
    monkeypatch.setattr(environment, "board", lambda: "NVIDIA Jetson Orin Nano Developer Kit")
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorrt" else find(name))
    finding = found("backend tensorrt")
    assert str(tmp_path) in finding.text
    assert "--system-site-packages" in finding.fix
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # a build meets it as well, on the board itself
    monkeypatch.setattr(tensorrt, "gpu_count", lambda: 1)
    with pytest.raises(MissingBackendError, match="which this environment does not see") as caught:
        tensorrt.TensorRtBackend().require(to_build=True)
    assert caught.value.fix == finding.fix


def test_a_missing_backend_says_what_it_costs_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.backends.openvino import OpenVinoBackend

    absent = Availability(False, "openvino cannot be imported", 'pip install "edgeopt[openvino]"')
    monkeypatch.setattr(OpenVinoBackend, "availability", lambda self: absent)
    finding = found("backend openvino")
    assert (finding.state, finding.fix) == ("missing", 'pip install "edgeopt[openvino]"')


def test_missing_training_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nncf" else find(name))
    assert found("training").text == "no nncf"
    assert found("training").fix == 'pip install "edgeopt[train]"'


def test_a_check_that_fails_is_a_finding_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[dict[str, str], ...]:
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(environment, "gpus", broken)
    assert found("gpu").state == "missing"
    assert "the driver is gone" in found("gpu").text
    assert found("cpu").text
