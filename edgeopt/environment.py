"""This machine, as a record: CPU and its flags, cores, memory, load, GPU, OS, versions."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeopt.allotment import cgroup_limits, memory_bytes, system_file, usable_cores
from edgeopt.config import Match
from edgeopt.nvidia import gpu_states
from edgeopt.nvidia import gpus as gpus

#: Flags that decide which int8 and bf16 kernels a CPU runs, by the names /proc/cpuinfo gives them.
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)
_PACKAGES = (
    "edgeopt",
    "numpy",
    "pillow",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "torch-pruning",
    "nncf",
    "onnx",
    "onnxscript",
    "optuna",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
)


@lru_cache(maxsize=1)
def cpu() -> dict[str, Any]:
    """``{"name", "machine", "flags", "cores"}``: model name, architecture, int8/bf16 flags present, usable cores."""
    info = system_file("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in info.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "name": fields.get("model name") or system_file("/proc/device-tree/model") or platform.processor() or "unknown",
        "machine": platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in present],
        "cores": usable_cores(),
    }


def has_int8_dot() -> bool:
    """Whether the CPU multiplies u8 by s8 into int32 without saturating (VNNI, AMX, NEON dot-product)."""
    if platform.machine() in ("arm64", "aarch64"):
        return True  # NEON widens to int16 exactly; dot-product only makes it faster
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(cpu()["flags"]))


def has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu()["flags"]))


def cpu_limits() -> dict[str, Any]:
    """What keeps the CPU slow: ``driver``, ``governor``, ``max_khz`` allowed of ``hardware_khz``, ``throttled`` (why).

    Empty or 0 where the machine does not say, as in most virtual ones.
    """
    folder = "/sys/devices/system/cpu/cpu0/cpufreq"
    khz = {name: system_file(f"{folder}/{name}") for name in ("scaling_max_freq", "cpuinfo_max_freq")}
    return {
        "driver": system_file(f"{folder}/scaling_driver"),
        "governor": system_file(f"{folder}/scaling_governor"),
        "max_khz": int(khz["scaling_max_freq"]) if khz["scaling_max_freq"].isdigit() else 0,
        "hardware_khz": int(khz["cpuinfo_max_freq"]) if khz["cpuinfo_max_freq"].isdigit() else 0,
        "throttled": _throttled(),
    }


def _throttled() -> str:
    """Why the CPU was slowed down since it was switched on; empty when it was not, or does not say."""
    heat = system_file("/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count")
    if heat.isdigit() and int(heat):
        return f"it was slowed down by heat {heat} times since it was switched on"
    # A Raspberry Pi: bit 0 under-voltage now, 2 throttled now, 16 and 18 the same since it was switched on.
    flags = system_file("/sys/devices/platform/soc/soc:firmware/get_throttled").removeprefix("0x")
    if flags and set(flags) <= set("0123456789abcdef"):
        bits = int(flags, 16)
        if bits & (1 << 0 | 1 << 16):
            return "its power supply is too weak (under-voltage)"
        if bits & (1 << 2 | 1 << 18):
            return "it was slowed down by heat"
    return ""


def frequency_mhz() -> float | None:
    """What the first core runs at now; None where the machine does not say."""
    khz = system_file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if khz.isdigit():
        return int(khz) / 1000
    found = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", system_file("/proc/cpuinfo"), re.MULTILINE)
    return float(found[1]) if found else None


def temperature_c() -> float | None:
    """The hottest thermal zone, degrees Celsius; None where there is none, as in most virtual machines."""
    zones = [system_file(str(path)) for path in sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))]
    degrees = [int(zone) / 1000 for zone in zones if zone.lstrip("-").isdigit()]
    return max(degrees, default=None)


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Installed versions of the libraries edgeopt stands on; absent ones are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def board() -> str:
    """The device-tree model (Raspberry Pi, Jetson), empty elsewhere."""
    return system_file("/proc/device-tree/model")


def cache_folder() -> Path:
    """Where this user's caches of edgeopt are, by the XDG base directory specification."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(stated) if Path(stated).is_absolute() else Path.home() / ".cache") / "edgeopt"


def machine_id() -> str:
    """Twelve hex digits for this kind of machine as engines see it: architecture, CPU, flags, GPU; no personal data."""
    parts = [platform.system(), platform.machine(), cpu()["name"], *cpu()["flags"], board()]
    parts += [gpu.get("name", "") for gpu in gpus()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def host_id() -> str:
    """Twelve hex digits for this very machine: tells a run made here from one that was copied here.

    A run that states them may run code, so that they come of a secret, not of hardware that a stranger can guess or
    that tenants share. A container has none of its own and is another machine at each start, unless it is given one.
    """
    own = system_file("/etc/machine-id") + platform.node()
    return hashlib.sha256(own.encode()).hexdigest()[:12]


def matches(match: Match) -> bool:
    """Whether this machine is the device a target describes."""
    return not misfits(match)


def misfits(match: Match) -> list[str]:
    """What keeps this machine from being the device a target describes, a line each; empty when it is."""
    wrong = []
    if match.machine and match.machine != platform.machine():
        wrong.append(f"the machine is {platform.machine()}, not {match.machine:.200}")
    if match.board and match.board.lower() not in board().lower():
        wrong.append(f"the board is {board() or 'not stated'}, not {match.board:.200}")
    if match.cpu and match.cpu.lower() not in str(cpu()["name"]).lower():
        wrong.append(f"the CPU is {cpu()['name']}, not {match.cpu:.200}")
    if match.gpu and not _has_gpu(match.gpu):
        found = ", ".join(gpu.get("name", "") for gpu in gpus())
        wrong.append(f"the GPU is {found}, not {match.gpu:.200}" if found else "there is no NVIDIA GPU")
    return wrong


def _has_gpu(wanted: str) -> bool:
    """Whether a GPU's name has the words ``wanted``: an L40 is no L4."""
    words = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)", re.IGNORECASE)
    return any(wanted.lower() == "nvidia" or words.search(gpu.get("name", "")) for gpu in gpus())


def record() -> dict[str, Any]:
    """The whole record, JSON-able."""
    return {
        "machine_id": machine_id(),
        "cpu": cpu(),
        "board": board(),
        "gpus": _gpus_now(),
        "memory_bytes": memory_bytes(),
        "load_1m": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "governor": system_file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "frequency_mhz": frequency_mhz(),
        "temperature_c": temperature_c(),
        "throttled": _throttled(),
        **cgroup_limits(),
        "os": platform.platform(),
        "python": sys.version.split()[0],
        "versions": versions(),
    }


def _gpus_now() -> list[dict[str, Any]]:
    """The GPUs, each with how warm and fast it is now, where that is told."""
    found: list[dict[str, Any]] = [dict(gpu) for gpu in gpus()]
    for gpu, state in zip(found, gpu_states() if found else (), strict=False):
        gpu.update(state)
    return found
