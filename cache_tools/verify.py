"""A cache -> the items that are damaged, missing or foreign; on request moved to quarantine, to be made again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tqdm import tqdm

from cache_tools.format.errors import storage_failed
from cache_tools.format.layout import open_layout
from cache_tools.format.store import require_same_recipe
from cache_tools.read.item_file import require_intact
from cache_tools.storage.open import store_at
from cache_tools.storage.remote_store import RemoteStore
from cache_tools.write.pairs import Failure
from cache_tools.write.writer import rebuild_index
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from cache_tools.format.store import Store

_DOWNLOADS = 8  # at a time


@dataclass
class VerifyReport:
    """What a check found. `unfinished` counts planned items that were never made."""

    depth: str
    items: int = 0
    failures: list[Failure] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    unfinished: int = 0


def verify(location: Path | str, *, full: bool, quarantine: bool = False) -> VerifyReport:
    """Quick: headers, chunk tables, sizes, recipe, index against folder. Full: every chunk's crc32 as well."""
    store = store_at(location)
    fingerprint = store.manifest.fingerprint
    items = list(store.sizes())
    report = VerifyReport("full" if full else "quick", len(items))
    damaged: list[str] = []
    # Of a folder one after the other, since the disk is one; object storage answers many at a time.
    with ThreadPoolExecutor(_DOWNLOADS if isinstance(store, RemoteStore) else 1, "verify") as pool:
        reasons = pool.map(lambda item: _fault(store, item, fingerprint, full=full), items)
        for item, reason in zip(items, tqdm(reasons, "verify", len(items), unit="item", disable=None), strict=True):
            if reason is not None:
                report.failures.append(Failure(item, reason))
                damaged.append(item)
    present = set(items)
    for entry in store.index_lines():
        if entry.id not in present:
            report.failures.append(Failure(entry.id, f"{store.place(entry.id)}: item is indexed but missing"))
    # More items than planned are no fault: a later run may have named fewer images.
    report.unfinished = max(0, store.manifest.planned - len(items))
    if quarantine and report.failures:
        report.quarantined = _quarantine(store, damaged)
    return report


def _fault(store: Store, item: str, fingerprint: str, *, full: bool) -> str | None:
    """What is wrong with one item, or None."""
    try:
        header = store.header(item) if isinstance(store, RemoteStore) else open_layout(store.item_path(item)).header
        require_same_recipe(store.place(item), header.fingerprint, fingerprint)
        if header.id != item:
            return f"{store.place(item)}: is item {header.id} under another name"
        if full:
            _require_intact(store, item)
    except Refusal as refusal:
        return f"{refusal.where}: {refusal.what}"  # without its cure, which is this command
    except OSError as error:
        return str(error)
    return None


def _require_intact(store: Store, item: str) -> None:
    if not isinstance(store, RemoteStore):
        require_intact(store.item_path(item))
        return
    # Not by way of the local copies: the object itself is to be looked at.
    with TemporaryDirectory() as folder:
        store.download(item, Path(folder) / "item")


def _quarantine(store: Store, damaged: list[str]) -> list[str]:
    """Move damaged items out of the cache, so that the next extraction makes them again."""
    if isinstance(store, RemoteStore):
        store.set_aside(damaged)
    else:
        try:
            store.quarantine.mkdir(exist_ok=True)
            for item in damaged:
                path = store.item_path(item)
                os.replace(path, store.quarantine / path.name)
        except OSError as error:
            raise storage_failed(store.quarantine, error) from error
    rebuild_index(store, store.entries())
    return damaged
