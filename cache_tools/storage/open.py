"""A cache's location -> its store; an item of a store -> the open file, of this machine or fetched to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cache_tools.format.errors import CorruptItem
from cache_tools.format.location import is_address
from cache_tools.format.store import Store
from cache_tools.read.item_file import Check, TileFile
from cache_tools.storage.remote_store import RemoteStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


def store_at(location: Path | str) -> Store:
    """The cache in a folder or in object storage; it need not exist."""
    return RemoteStore(location) if is_address(location) else Store(Path(location))


def open_item(store: Store, item: str, check: Check = "first") -> TileFile:
    """An item, open for reading."""
    if isinstance(store, RemoteStore):
        return FetchedFile(store, item, check)
    return TileFile(store.item_path(item), check)


class FetchedFile(TileFile):
    """A local copy of an item. One that is damaged or evicted is fetched again; a damaged one is never served."""

    def __init__(self, store: RemoteStore, item: str, check: Check) -> None:
        self._store, self._item = store, item
        self._check: Check = check
        try:
            super().__init__(store.fetch(item), check)
        except CorruptItem:  # what was checked when it came: the local disk has damaged or lost it since
            super().__init__(store.refetch(item), check)

    def tile(self, tile: tuple[int, int], names: Sequence[str]) -> dict[str, np.ndarray]:
        """As of a local item."""
        try:
            return super().tile(tile, names)
        except (CorruptItem, FileNotFoundError):
            self.close()
            super().__init__(self._store.refetch(self._item), self._check)
            return super().tile(tile, names)

    def _open(self) -> int:
        # Opened by name only when first read: by then it may have been evicted for others.
        try:
            return super()._open()
        except FileNotFoundError:
            super().__init__(self._store.refetch(self._item), self._check)
            return super()._open()
