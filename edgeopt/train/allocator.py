"""What glibc does with freed memory: kept while training, given back where little must be held for long."""

from __future__ import annotations

import ctypes
import platform
from functools import lru_cache
from pathlib import Path

from edgeopt.allotment import available_bytes

# Parameters of mallopt(3), from malloc.h; of madvise(2), from mman.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_NEVER = -1
_PAD_BYTES = 64 * 2**20
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 * 2**20
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MOST_ADVISED = 16 * 2**30


def keep_memory() -> bool:
    """Let this process keep the memory it frees; best before the first big allocation, and again after
    :func:`give_back_memory`. Returns whether it could.

    PyTorch on a CPU otherwise gives it back every step and faults it in again.

    Big blocks then come from the heap, which neither shrinks nor is unmapped: the next step finds its pages in place.
    Where Linux gives huge pages to who asks for them (transparent_hugepage/enabled: madvise), the heap asks: in pages
    of 4 KiB a step, which passes through gigabytes, spent a third of its time on translating addresses (0.88 s, then
    0.53: EfficientNet-Lite0, 128 px, in a virtual machine). Only glibc can be told; elsewhere nothing happens.
    """
    kept = _keep()
    if kept:
        _ask_for_huge_pages()
    return kept


@lru_cache(maxsize=1)
def _keep() -> bool:
    libc = _glibc()
    if libc is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _PAD_BYTES))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)


def _ask_for_huge_pages() -> None:
    """Extend the heap, in addresses alone, by half of the memory that is free, and advise all of that.

    glibc itself would advise (GLIBC_TUNABLES=glibc.malloc.hugetlb=1), but must be told before the process begins.
    """
    libc = _glibc()
    if libc is None or not huge_pages_on_request():
        return
    size = _bytes_to_advise()
    if size < _HUGE_PAGE or not (block := libc.malloc(size)):  # a limit on addresses, as of ulimit -v: then without
        return
    start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(start, block + size - start, _MADV_HUGEPAGE)
    libc.free(block)


@lru_cache(maxsize=1)
def _bytes_to_advise() -> int:
    """Once a process: what is free goes up and down, and the heap need not grow whenever it goes up."""
    return min(available_bytes() // 2, _MOST_ADVISED)


def huge_pages_on_request() -> bool:
    """Whether Linux gives huge pages to who asks: not where all memory is given them anyway, or none."""
    try:
        return "[madvise]" in _THP.read_text()
    except OSError:
        return False


def give_back_memory() -> None:
    """Give the kernel what is free now, also between blocks in use (malloc_trim(3)); elsewhere nothing happens.

    A few small tensors kept from each batch would otherwise pin the pages that its big ones leave behind.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_size_t
    libc.free.argtypes, libc.free.restype = [ctypes.c_size_t], None
    libc.madvise.argtypes, libc.madvise.restype = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return libc
