"""glibc's malloc: freed memory is kept for the next layer, or given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGE_BLOCK, _KEPT = 64 << 20, 1 << 30  # bytes: blocks from this size on use mmap; freed memory kept for reuse


def keep_freed_memory() -> None:
    """For a command, once: make malloc keep large freed blocks for the next layer.

    By default it returns each to the system, which zeroes every page again for the next layer: for tiles of 256 that
    was measured to take as long as the arithmetic.
    """
    with suppress(OSError, AttributeError):  # not glibc: nothing to set
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back_memory() -> None:
    """For a program that keeps running, after a job: return to the system what `keep_freed_memory` made malloc keep."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
