"""NVIDIA GPUs of this machine, as ``nvidia-smi`` lists them, or the driver itself where that program is not."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from functools import lru_cache
from typing import Any

#: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_CAPABILITY = (75, 76)
#: SwPowerCap, HwSlowdown, SwThermalSlowdown, HwThermalSlowdown, HwPowerBrakeSlowdown
_REASONS = {0x4: "power cap", 0x8: "heat or power", 0x20: "heat", 0x40: "heat, by hardware", 0x80: "power brake"}


@lru_cache(maxsize=1)
def gpus() -> tuple[dict[str, str], ...]:
    """Name and compute capability of each, and where ``nvidia-smi`` tells them driver and memory."""
    if shutil.which("nvidia-smi") is None:
        return tuple(_of_the_driver())  # as in containers on a Jetson, whose GPU is there all the same
    rows = _ask("name,driver_version,memory.total,compute_cap")
    return tuple(dict(zip(("name", "driver", "memory", "compute_capability"), row, strict=False)) for row in rows)


def gpu_states() -> list[dict[str, Any]]:
    """How each GPU is now: ``temperature_c``, ``clock_mhz``, ``slowed`` (why its clock is held down; empty when not).

    Empty where ``nvidia-smi`` is not, or does not know one of them.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    found = []
    for row in _ask("temperature.gpu,clocks.sm,clocks_throttle_reasons.active", "nounits"):
        heat, clock, reasons = [*row, "", "", ""][:3]
        state: dict[str, Any] = {"slowed": _slowed(reasons)}
        numbers = {"temperature_c": heat, "clock_mhz": clock}
        found.append({**{name: float(value) for name, value in numbers.items() if value.isdigit()}, **state})
    return found


def _slowed(reasons: str) -> str:
    """What of NVML's ``nvmlClocksThrottleReasons`` is no choice of the user's, nor idleness."""
    bits = int(reasons, 16) if re.fullmatch("0x[0-9a-fA-F]+", reasons) else 0
    return ", ".join(why for bit, why in _REASONS.items() if bits & bit)


def _ask(fields: str, *formats: str) -> list[list[str]]:
    """Cells that ``nvidia-smi`` gives for each GPU; none where it fails."""
    query = ["nvidia-smi", f"--query-gpu={fields}", f"--format={','.join(('csv', 'noheader', *formats))}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []  # a driver that hangs runs nothing
    if done.returncode != 0:
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]


def _of_the_driver() -> list[dict[str, str]]:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found = []
    for device in range(count.value):
        name, numbers = ctypes.create_string_buffer(256), [ctypes.c_int(0), ctypes.c_int(0)]
        if driver.cuDeviceGetName(name, len(name), device) != 0:
            continue
        for number, attribute in zip(numbers, _CAPABILITY, strict=True):
            driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability = ".".join(str(number.value) for number in numbers)
        found.append({"name": name.value.decode(errors="replace"), "compute_capability": capability})
    return found
