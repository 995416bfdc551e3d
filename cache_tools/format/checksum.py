"""Stored bytes -> their crc32. HDF5 itself returns wrong numbers after most bit flips without an error."""

from __future__ import annotations

import hashlib
import zlib


def crc32(stored: bytes | bytearray | memoryview) -> int:
    """crc32 of a chunk as it lies on disk."""
    return zlib.crc32(stored)


def short_hash(text: str, digits: int = 8) -> str:
    """The first hex digits of a name's sha1: for unique file names, not for safety."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:digits]
