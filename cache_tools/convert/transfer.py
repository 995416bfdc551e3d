"""A cache here -> the same cache in object storage or on the Hugging Face Hub, and back; item by item, resumable."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from cache_tools.convert.dataset_card import dataset_card
from cache_tools.convert.merge import Merged
from cache_tools.format.location import is_address
from cache_tools.format.store import Store
from cache_tools.read.item_file import require_intact
from cache_tools.storage.remote_store import RemoteStore
from cache_tools.write.recipe import require_unmixed
from cache_tools.write.space import require_room
from cache_tools.write.writer import open_store, rebuild_index
from imaging.atomic import commit, temporary_path
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
_AT_ONCE = 8  # transfers at a time
_HUB = "hf://"
_PER_COMMIT = 64  # items in one commit to the Hub, which limits how many commits an hour it takes


def push(folder: Path | str, address: Path | str) -> Merged:
    """Every item is checked before it is sent; the index comes last, as one object."""
    store, target = Store(_folder(folder)), _remote(address)
    entries = store.entries()
    require_unmixed(target, store.manifest.recipe)
    open_store(target, store.manifest)
    there = target.sizes()
    missing = [entry.id for entry in entries if there.get(entry.id) != entry.bytes]
    on_hub = target.address.startswith(_HUB)

    def send(items: Sequence[str]) -> int:
        for item in items:
            require_intact(store.item_path(item))
        target.send({item: store.item_path(item) for item in items})
        return len(items)

    groups = list(_groups(missing, _PER_COMMIT if on_hub else 1))
    # One commit at a time: the Hub refuses one whose parent is no longer the latest.
    with (
        ThreadPoolExecutor(1 if on_hub else _AT_ONCE, "push") as pool,
        tqdm(total=len(missing), unit="item", desc="push", disable=None) as bar,
    ):
        for count in pool.map(send, groups):
            bar.update(count)
    if on_hub:
        target.bucket.write("README.md", dataset_card(store, target.address).encode())
    rebuild_index(target, entries)
    return Merged(f"pushed to {address}", len(missing), len(entries) - len(missing))


def pull(address: Path | str, folder: Path | str) -> Merged:
    """Every item is checked when it has come, and only then has its name."""
    source, store = _remote(address), Store(_folder(folder))
    entries = source.entries()
    require_unmixed(store, source.manifest.recipe)
    require_room(store.root, sum(entry.bytes for entry in entries))
    open_store(store, source.manifest)
    there = store.sizes()
    missing = [entry.id for entry in entries if there.get(entry.id) != entry.bytes]

    def receive(item: str) -> None:
        final = store.item_path(item)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(final)
        try:
            source.download(item, temporary)
            commit(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)

    with (
        ThreadPoolExecutor(_AT_ONCE, "pull") as pool,
        tqdm(total=len(missing), unit="item", desc="pull", disable=None) as bar,
    ):
        for _ in pool.map(receive, missing):
            bar.update()
    rebuild_index(store, store.entries())
    return Merged(f"pulled from {address}", len(missing), len(entries) - len(missing))


def _remote(address: Path | str) -> RemoteStore:
    if not is_address(address):
        cure = "name s3://BUCKET/CACHE, gs://, az:// or hf://datasets/USER/NAME; folders are copied by the system"
        raise Refusal("is a folder", where=address, cure=cure)
    return RemoteStore(address)


def _folder(location: Path | str) -> Path:
    if is_address(location):
        cure = "name a folder of this machine; `repack` and `merge` read and write addresses"
        raise Refusal("is an address", where=location, cure=cure)
    return Path(location)


def _groups(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[first : first + size] for first in range(0, len(items), size))
