"""A finished item in memory -> the item on disk under its final name, or nothing at all.

`.<id>.h5.tmp.<host>.<pid>` -> close -> fsync -> reopen and check -> rename -> fsync the folder -> an index line.
A process killed anywhere in between leaves either no item or a whole one.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from cache_tools.format.errors import storage_failed
from cache_tools.format.item import serialize_item
from cache_tools.format.store import Entry
from cache_tools.read.item_file import require_intact
from cache_tools.storage.remote_store import RemoteStore
from imaging.atomic import remove_dead_temporaries, sync_file, sync_folder, write_text
from imaging.tensors.seal import sealed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from cache_tools.format.schema import Header
    from cache_tools.format.store import Manifest, Store

RANK_0 = "rank-000"
_PIECE = 1 << 24  # bytes per write call: some systems write no more than 2 GiB at once


class ItemWriter:
    """Writes items and one file of the index, which no other process that runs at the same time may have."""

    def __init__(self, store: Store, name: str = RANK_0) -> None:
        self._store = store
        self._index = store.index / f"{name}.jsonl"

    def write(self, header: Header, arrays: Mapping[str, np.ndarray], stamp: str = "") -> None:
        """Encode, write, check and commit one item."""
        content = serialize_item(header, arrays)
        try:
            with self._store.committing(header.id) as temporary:
                _write_all(temporary, content)
                sync_file(temporary)
                # Read back as a reader would: a bad write is found now, while the experts' outputs are still in memory.
                require_intact(temporary)
        except OSError as error:
            raise storage_failed(self._store.item_path(header.id), error) from error
        self.note(Entry.of(header, len(content), stamp))

    def note(self, entry: Entry) -> None:
        """Append the item's line to this rank's index, as one write; after a killed writer's torn line on a new one."""
        if isinstance(self._store, RemoteStore):
            self._store.note(self._index.stem, entry.line)
            return
        try:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            # A line appended to a torn one would be lost with it.
            torn = self._index.exists() and not _ends_with_newline(self._index)
            line = ("\n" if torn else "") + entry.line
            descriptor = os.open(self._index, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                # O_APPEND and one write: lines of two processes on one index do not interleave.
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_failed(self._index, error) from error

    def finish(self) -> None:
        """Nothing more will be written: in object storage, lines of the index are sent several at a time."""
        if isinstance(self._store, RemoteStore):
            self._store.flush(self._index.stem)


def name_of_rank(rank: int) -> str:
    """The index file of one of several processes that share the items."""
    return f"rank-{rank:03d}"


def open_store(store: Store, manifest: Manifest) -> None:
    """Make the cache's folder ready for writing: proven writable, cleared of our own dead temporaries, described."""
    text = json.dumps(sealed(manifest.model_dump(mode="json")), indent=2) + "\n"
    if isinstance(store, RemoteStore):
        store.begin(text)
        return
    try:
        store.items.mkdir(parents=True, exist_ok=True)
        remove_dead_temporaries(store.root)
        write_text(store.manifest_path, text)
    except OSError as error:
        raise storage_failed(store.root, error) from error


def rebuild_index(store: Store, entries: list[Entry]) -> None:
    """One index file in place of all, with exactly the existing items."""
    text = "".join(entry.line for entry in entries)
    if isinstance(store, RemoteStore):
        store.rewrite_index(RANK_0, text)
        return
    try:
        write_text(store.index / f"{RANK_0}.jsonl", text)
        for path in store.index.glob("*.jsonl"):
            if path.name != f"{RANK_0}.jsonl":
                path.unlink()
        sync_folder(store.index)
    except OSError as error:
        raise storage_failed(store.index, error) from error


def _write_all(path: Path, content: memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        done = 0
        while done < len(content):
            done += os.write(descriptor, content[done : done + _PIECE])
    finally:
        os.close(descriptor)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        if stream.tell() == 0:
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
