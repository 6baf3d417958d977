"""Tells glibc to keep freed memory: PyTorch on a CPU otherwise gives it back every step and faults it in again."""

from __future__ import annotations

import ctypes
import platform
from functools import lru_cache

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_NEVER = -1
_PAD_BYTES = 64 * 2**20


@lru_cache(maxsize=1)
def keep_memory() -> bool:
    """Let this process keep the memory it frees; best before the first big allocation. Returns whether it could.

    Big blocks then come from the heap, which neither shrinks nor is unmapped: the next step finds its pages in place.
    Only glibc can be told; elsewhere nothing happens.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _PAD_BYTES))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)
