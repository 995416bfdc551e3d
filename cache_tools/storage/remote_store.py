"""A cache's address in object storage -> the same cache as a folder offers; items are read through a local copy.

    ADDRESS/ manifest.json   index/<writer>-<time>-<part>.jsonl   items/ab/<id>.h5   quarantine/

Objects cannot be appended to, so that each part of the index is an object of its own.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cache_tools.format.checksum import short_hash
from cache_tools.format.errors import CorruptItem
from cache_tools.format.layout import read_header
from cache_tools.format.schema import SUFFIX
from cache_tools.format.store import Entry, Store, parse_entry
from cache_tools.read.item_file import require_intact
from cache_tools.storage.bucket import Bucket, Listed
from cache_tools.storage.item_cache import ItemCache
from imaging.atomic import remove_dead_temporaries, temporary_path

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from cache_tools.format.schema import Header

_MANIFEST, _ITEMS, _INDEX, _QUARANTINE = "manifest.json", "items/", "index/", "quarantine/"
_THREADS = 8  # downloads at a time: enough for latency, few enough for one machine's share of bandwidth
_LINES, _SECONDS = 64, 30.0  # of the index in one object: what a killed run leaves to be read from its items again
_DOWNLOADS = 3  # attempts for an item that arrives damaged


class RemoteStore(Store):
    """Cheap to make, pickle and fork. `root` is a folder of this machine for what is on its way out."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.bucket = Bucket(address)
        self._copies = ItemCache.of_environment()
        super().__init__(self._copies.folder.parent / "outgoing" / short_hash(address))
        self._listing: dict[str, Listed] = {}
        self._owner, self._lock = os.getpid(), threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[str, Future[Path]] = {}
        self._lines: list[str] = []
        self._flushed, self._parts = time.monotonic(), 0

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str]]:
        return RemoteStore, (self.address,)

    @property
    def location(self) -> str:
        """The address."""
        return self.address

    # what is there

    @property
    def manifest_place(self) -> str:
        """Its address."""
        return self.bucket.at(_MANIFEST)

    def read_manifest(self) -> str:
        """Its text; FileNotFoundError where there is none."""
        return self.bucket.read(_MANIFEST).decode(errors="replace")

    def has_manifest(self) -> bool:
        """Whether there is a cache at all."""
        return self.bucket.look(_MANIFEST) is not None

    def sizes(self) -> dict[str, int]:
        """Every item and its bytes, by one listing."""
        found = self.bucket.list(_ITEMS)
        self._listing = {
            name.rpartition("/")[2].removesuffix(SUFFIX): one for name, one in found.items() if name.endswith(SUFFIX)
        }
        return {item: self._listing[item].size for item in sorted(self._listing)}

    def size(self, item: str) -> int | None:
        """Bytes of one item; None where it is not there."""
        found = self.bucket.look(_name(item))
        if found is None:
            return None
        self._listing[item] = found
        return found.size

    def place(self, item: str) -> str:
        """The object's address."""
        return self.bucket.at(_name(item))

    def header(self, item: str) -> Header:
        """From the first kilobytes of the object."""
        return self.bucket.read_part(_name(item), lambda stream: read_header(self.place(item), stream))

    def headers(self, items: Sequence[str]) -> list[Header]:
        """Of several items, at the same time."""
        with ThreadPoolExecutor(_THREADS, "header") as pool:
            return list(pool.map(self.header, items))

    def index_lines(self, file: str = "*") -> Iterator[Entry]:
        """The index as it stands, in the order of its objects' names."""
        wanted = None if file == "*" else file
        names = [name for name in sorted(self.bucket.list(_INDEX)) if name.endswith(".jsonl")]
        names = [name for name in names if wanted is None or name == f"{_INDEX}{wanted}.jsonl"]
        with ThreadPoolExecutor(_THREADS, "index") as pool:
            for text in pool.map(self.bucket.read, names):
                for line in text.decode(errors="replace").splitlines():
                    entry = parse_entry(line)
                    if entry is not None:
                        yield entry

    # reading

    def fetch(self, item: str) -> Path:
        """The local copy, downloaded where there is none."""
        return self._future(item).result()

    def refetch(self, item: str) -> Path:
        """The local copy is damaged or gone: once more from the storage."""
        self._copies.discard(self._copy_name(item))
        with self._lock:
            self._coming.pop(item, None)
        return self.fetch(item)

    def prefetch(self, items: Iterable[str]) -> None:
        """Have these items downloaded in the background, as far as half of the local cache holds them."""
        room = self._copies.limit // 2
        for item in items:
            room -= self._listed(item).size
            if room < 0:
                break
            self._future(item)

    def download(self, item: str, target: Path) -> None:
        """An item, whole and checked against its checksums, under a temporary name."""
        damage: str | None = None
        for _ in range(_DOWNLOADS):
            damage = self._try_download(item, target)
            if damage is None:
                return
        raise self._corrupt(item, f"arrives damaged ({damage})")

    def _try_download(self, item: str, target: Path) -> str | None:
        """What is wrong with what arrived, or None."""
        try:
            self.bucket.get(_name(item), target)
            self._require_whole(item, target, self._listed(item).size)
        except FileNotFoundError:
            raise self._corrupt(item, "item is missing") from None
        except CorruptItem as error:
            return error.what
        return None

    def _require_whole(self, item: str, path: Path, size: int) -> None:
        found = path.stat().st_size
        if found != size:
            raise self._corrupt(item, f"{found} of {size} bytes arrived")
        require_intact(path)
        if (identity := read_header(path).id) != item:
            raise self._corrupt(item, f"is item {identity} under another name")

    def _corrupt(self, item: str, what: str) -> CorruptItem:
        cure = "run `python -m cache_tools verify CACHE --full --quarantine`, then extract again"
        return CorruptItem(what, where=self.place(item), cure=cure)

    def _future(self, item: str) -> Future[Path]:
        """The download of an item: one at a time, whoever asks for it."""
        with self._lock:
            if self._owner != os.getpid() or self._pool is None:  # threads do not survive a fork
                self._owner, self._pool, self._coming = os.getpid(), ThreadPoolExecutor(_THREADS, "fetch"), {}
            future = self._coming.get(item)
            # A finished one may have been evicted since: asked again, it is found or downloaded.
            if future is None or future.done():
                future = self._coming[item] = self._pool.submit(self._copy, item)
            return future

    def _copy(self, item: str) -> Path:
        name, size = self._copy_name(item), self._listed(item).size
        return self._copies.get(name, size, lambda target: self.download(item, target))

    def _copy_name(self, item: str) -> str:
        """Another content has another version, so another name: a copy is never of an older object."""
        return f"{short_hash(self.address)}/{item}.{short_hash(self._listed(item).version)}{SUFFIX}"

    def _listed(self, item: str) -> Listed:
        if item not in self._listing and self.size(item) is None:
            raise self._corrupt(item, "item is missing")
        return self._listing[item]

    # writing

    @contextmanager
    def committing(self, item: str) -> Generator[Path]:
        """Written and checked on this machine, then sent by one PUT: an object is there whole or not at all."""
        temporary = temporary_path(self.item_path(item))
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            self.bucket.put(_name(item), temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def send(self, files: Mapping[str, Path]) -> None:
        """Finished items; on the Hub as one commit."""
        self.bucket.put_all({_name(item): path for item, path in files.items()})

    def begin(self, manifest: str) -> None:
        """Describe the cache, unless it is described so already; clear what killed runs of this machine left."""
        if self.root.is_dir():
            remove_dead_temporaries(self.root)
        if not self.has_manifest() or self.read_manifest() != manifest:
            self.bucket.write(_MANIFEST, manifest.encode())

    def note(self, name: str, line: str) -> None:
        """Keep a line of the index until there are enough for an object."""
        with self._lock:
            self._lines.append(line)
        if len(self._lines) >= _LINES or time.monotonic() - self._flushed > _SECONDS:
            self.flush(name)

    def flush(self, name: str) -> None:
        """Send the lines kept so far."""
        with self._lock:
            lines, self._lines = self._lines, []
            self._flushed, self._parts = time.monotonic(), self._parts + 1
        if lines:
            # By time: a later run on this machine may have the same name and process number.
            self.bucket.write(f"{_INDEX}{name}-{time.time_ns()}-{self._parts}.jsonl", "".join(lines).encode())

    def rewrite_index(self, name: str, text: str) -> None:
        """One object in place of all of the index."""
        before = set(self.bucket.list(_INDEX))
        self.bucket.write(f"{_INDEX}{name}.jsonl", text.encode())
        for other in before - {f"{_INDEX}{name}.jsonl"}:
            self.bucket.remove(other)

    def set_aside(self, items: Sequence[str]) -> None:
        """Move items out of the cache."""
        for item in items:
            self.bucket.move(_name(item), f"{_QUARANTINE}{item}{SUFFIX}")

    def remove(self, item: str) -> None:
        """Delete an item."""
        self.bucket.remove(_name(item))


def _name(item: str) -> str:
    return f"{_ITEMS}{short_hash(item, 2)}/{item}{SUFFIX}"
