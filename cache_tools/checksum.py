"""Stored bytes -> their crc32. HDF5 itself returns wrong numbers after most bit flips without a word; this does not."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def crc32(stored: bytes | bytearray | memoryview) -> int:
    """crc32 of a chunk as it lies on disk."""
    return zlib.crc32(stored)


def file_sha256(path: Path) -> str:
    """sha256 of a whole file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def short_hash(text: str, digits: int = 8) -> str:
    """The first hex digits of a name's sha1: for unique file names, not for safety."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:digits]
