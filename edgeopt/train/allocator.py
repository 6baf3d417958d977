"""What glibc does with freed memory: kept while training, given back where little must be held for long."""

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

    PyTorch on a CPU otherwise gives it back every step and faults it in again.

    Big blocks then come from the heap, which neither shrinks nor is unmapped: the next step finds its pages in place.
    Only glibc can be told; elsewhere nothing happens.
    """
    libc = _glibc()
    if libc is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _PAD_BYTES))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)


def give_back_memory() -> None:
    """Give the kernel what is free now, also between blocks in use (malloc_trim(3)); elsewhere nothing happens.

    A few small tensors kept from each batch would otherwise pin the pages that its big ones leave behind.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    linux = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL(None) if linux else None
