"""How the C library treats freed memory: kept for the next layer, or given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGE_BLOCK, _KEPT = 64 << 20, 1 << 30  # bytes: what is mapped by itself, what is kept at the heap's end


def keep_freed_memory() -> None:
    """For a command, once: glibc shall keep large blocks that are freed, for the next layer to use.

    Left alone it gives each back to the system, which clears it page by page when the next layer asks: for tiles of 256
    that was seen to take as long as the arithmetic.
    """
    with suppress(OSError, AttributeError):  # another C library: nothing to set
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back_memory() -> None:
    """After work in a program that stays: what `keep_freed_memory` kept goes back to the system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
