"""What can be wrong with a cache, each its own kind of refusal."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CorruptItem(Refusal):
    """An item's stored bytes are not those that were written."""


class StorageFailed(Refusal):
    """The disk is full, over quota or not writable: no later item can be stored either, so the run ends."""


class ForeignCache(Refusal):
    """A cache was made with other experts, settings or sources than the requested ones."""


def corrupt(path: Path | str, what: str) -> CorruptItem:
    """The refusal for a damaged item, with the command that repairs the cache."""
    cure = "run `python -m cache_tools verify CACHE --full --quarantine`, then extract again"
    return CorruptItem(what, where=path, cure=cure)


def storage_failed(path: Path, error: OSError) -> StorageFailed:
    """A failed write -> the operating system's reason, with a cure."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        cure = "free some space and run the same command again"
        return StorageFailed(f"no room to write ({reason})", where=path, cure=cure)
    return StorageFailed(f"cannot be written ({reason})", where=path, cure="choose a folder that you may write to")
