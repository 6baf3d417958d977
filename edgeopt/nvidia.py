"""NVIDIA GPUs of this machine, as ``nvidia-smi`` lists them, or the driver itself where that program is not."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import lru_cache

#: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_CAPABILITY = (75, 76)


@lru_cache(maxsize=1)
def gpus() -> tuple[dict[str, str], ...]:
    """Name and compute capability of each, and where ``nvidia-smi`` tells them driver and memory."""
    if shutil.which("nvidia-smi") is None:
        return tuple(_of_the_driver())  # as in containers on a Jetson, whose GPU is there all the same
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()  # a driver that hangs runs nothing
    if done.returncode != 0:
        return ()
    keys = ("name", "driver", "memory", "compute_capability")
    return tuple(
        dict(zip(keys, (cell.strip() for cell in line.split(",")), strict=False)) for line in done.stdout.splitlines()
    )


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
