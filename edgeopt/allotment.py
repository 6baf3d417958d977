"""What of this machine a process may use: its cores and memory, cut by cgroups, shared by those a launcher started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil, inf
from pathlib import Path, PurePosixPath
from typing import Any


def usable_cores() -> int:
    """Cores this process may run on: its affinity, cut by the cgroups' CPU quotas."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else min(cores, max(1, ceil(quota)))


def cpu_quota() -> float | None:
    """Cores' worth of time that the strictest cgroup allows; None where none limits it."""
    found = []
    for folder in _cgroup_folders("cpu"):
        v2, v1 = (system_file(f"{folder}/{name}") for name in ("cpu.max", "cpu.cfs_quota_us"))
        quota, period = v2.split()[:2] if " " in v2 else (v1, system_file(f"{folder}/cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_bytes() -> int:
    """Physical memory in bytes, 0 where it cannot be read."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def usable_memory_bytes() -> int:
    """Physical memory in bytes, cut by the cgroups' limits; 0 where it cannot be read."""
    return min([memory_bytes(), *(limit for limit, _ in _cgroup_memory())])


def available_bytes() -> int:
    """Memory that a new process may take: what the kernel calls available, cut by the cgroups' limits; 0 if unknown."""
    free = 0
    for line in system_file("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = 1024 * int(line.split()[1])
    return min([free, *(max(0, limit - used) for limit, used in _cgroup_memory())])


def _cgroup_memory() -> list[tuple[int, int]]:
    """(limit, used) in bytes of each cgroup that limits this process's memory."""
    found = []
    for folder in _cgroup_folders("memory"):
        for names in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, used = (system_file(f"{folder}/{name}") for name in names)
            if limit.isdigit() and used.isdigit():
                found.append((int(limit), int(used)))
    return found


def _cgroup_folders(controller: str) -> Iterator[str]:
    """Where the limits of this process's cgroups are: its own and those it is in, v2 and v1.

    In a container, the folder of its own cgroup is usually mounted as if it were the root.
    """
    for line in ["0::/", *system_file("/proc/self/cgroup").splitlines()]:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = f"/sys/fs/cgroup/{controller}" if controllers else "/sys/fs/cgroup"
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents):
            yield f"{root}{str(folder).rstrip('/')}"


def is_memory(folder: Path) -> bool:
    """Whether files in ``folder`` are in memory (tmpfs); False where the system does not say."""
    device = folder.stat().st_dev
    place = f"{os.major(device)}:{os.minor(device)}"
    for line in system_file("/proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")  # see proc_pid_mountinfo(5)
        if mount.split()[2:3] == [place]:
            return kind.split()[:1] in (["tmpfs"], ["ramfs"])
    return False


def cgroup_limits() -> dict[str, Any]:
    """Cores and bytes that cgroups allow; None where they do not limit them."""
    # A cgroup of v1 without a limit states one that no machine reaches.
    limits = [limit for limit, _ in _cgroup_memory() if limit < (memory_bytes() or inf)]
    return {"cpu_quota": cpu_quota(), "memory_limit_bytes": min(limits, default=None)}


def process_count() -> int:
    """How many processes a launcher such as ``torchrun`` says there are of this one; 1 without one."""
    return _launched("WORLD_SIZE", 1)


def process_rank() -> int:
    """Which of them this one is, from 0; the first alone writes and speaks."""
    return _launched("RANK", 0) if process_count() > 1 else 0


def local_process_count() -> int:
    """How many of them are on this machine: all, where the launcher does not say."""
    return max(1, _launched("LOCAL_WORLD_SIZE", process_count()))


def _launched(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default


def system_file(path: str) -> str:
    """What a file of ``/proc``, ``/sys`` or ``/etc`` says; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
