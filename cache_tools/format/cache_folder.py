"""A cache's folder -> where its parts lie and how an item is reached; object storage offers the same by other means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache_tools.format.checksum import short_hash
from cache_tools.format.layout import read_header
from cache_tools.format.schema import SUFFIX
from imaging.atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cache_tools.format.schema import Header


@dataclass(frozen=True)
class CacheFolder:
    """The places inside one cache folder."""

    root: Path

    @property
    def manifest_path(self) -> Path:
        """What the cache is."""
        return self.root / "manifest.json"

    @property
    def items(self) -> Path:
        """The items, in 256 folders."""
        return self.root / "items"

    @property
    def index(self) -> Path:
        """One file of lines per writing rank."""
        return self.root / "index"

    @property
    def quarantine(self) -> Path:
        """Where `verify --quarantine` puts what is damaged."""
        return self.root / "quarantine"

    def item_path(self, item: str) -> Path:
        """Where an item lies, or will."""
        # 256 folders by hash: one folder of many thousand files is slow to list on many file systems.
        return self.items / short_hash(item, 2) / f"{item}{SUFFIX}"

    def item_paths(self) -> list[Path]:
        """Every item file, in the order of their ids; temporaries are hidden files and do not count."""
        found = (path for path in self.items.glob(f"*/*{SUFFIX}") if not path.name.startswith("."))
        return sorted(found, key=lambda path: path.name)

    @property
    def location(self) -> Path | str:
        """What the user calls it: for messages, and to open it again."""
        return self.root

    def place(self, item: str) -> Path | str:
        """Where an item lies, for messages."""
        return self.item_path(item)

    @property
    def manifest_place(self) -> Path | str:
        """Where the manifest lies, for messages."""
        return self.manifest_path

    def has_manifest(self) -> bool:
        """Whether there is a cache at all."""
        return self.manifest_path.exists()

    def read_manifest(self) -> str:
        """Its text; FileNotFoundError where there is none."""
        return self.manifest_path.read_text(encoding="utf-8", errors="replace")

    def sizes(self) -> dict[str, int]:
        """Every item and its bytes, in the order of their ids."""
        return {path.name.removesuffix(SUFFIX): path.stat().st_size for path in self.item_paths()}

    def size(self, item: str) -> int | None:
        """Bytes of one item; None where it is not there."""
        path = self.item_path(item)
        return path.stat().st_size if path.exists() else None

    def header(self, item: str) -> Header:
        """What an item says of itself."""
        return read_header(self.item_path(item))

    def headers(self, items: Sequence[str]) -> list[Header]:
        """Of several items."""
        return [self.header(item) for item in items]

    def fetch(self, item: str) -> Path:
        """A file of this machine that holds the item."""
        return self.item_path(item)

    def prefetch(self, items: Iterable[str]) -> None:
        """These items will be read soon: nothing to do for files of this machine."""

    def committing(self, item: str) -> AbstractContextManager[Path]:
        """A temporary file to write and check an item in; at the end of the block it is the item, or it is gone."""
        return atomic_path(self.item_path(item))
