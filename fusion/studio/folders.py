"""The folders chosen at the start -> the caches and runs in them, by name. Nothing else can be asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEEPEST = 3  # folders below the chosen one that are looked into
_CACHE, _RUN = "manifest.json", "config.yaml"


@dataclass(frozen=True)
class Folders:
    """A root for caches and one for runs; None: there is nothing to look at."""

    cache_root: Path | None = None
    run_root: Path | None = None

    @classmethod
    def of(cls, caches: Path | None, runs: Path | None) -> Folders:
        """Both must exist."""
        for name, folder in (("--caches", caches), ("--runs", runs)):
            if folder is not None and not folder.is_dir():
                raise Refusal("no such folder", where=f"{name} {folder}", cure="check the path")
        return cls(caches and caches.resolve(), runs and runs.resolve())

    def caches(self) -> dict[str, Path]:
        """Name -> cache folder, as they are now."""
        return _found(self.cache_root, _CACHE)

    def runs(self) -> dict[str, Path]:
        """Name -> run folder, as they are now."""
        return _found(self.run_root, _RUN)

    def cache(self, name: str) -> Path:
        """The cache of this name. Names are looked up, never joined to a path, so that none can lead elsewhere."""
        return _of_name(self.caches(), name, "cache")

    def run(self, name: str) -> Path:
        """The run of this name."""
        return _of_name(self.runs(), name, "run")


def _of_name(known: dict[str, Path], name: str, kind: str) -> Path:
    if name not in known:
        raise Refusal(f"there is no {kind} of this name", where=str(name)[:80], cure=nearest(str(name)[:80], known))
    return known[name]


def _found(root: Path | None, mark: str) -> dict[str, Path]:
    if root is None:
        return {}
    return {_name(folder, root): folder for folder in sorted(_marked(root, root, mark, _DEEPEST))}


def _marked(folder: Path, root: Path, mark: str, deeper: int) -> Iterator[Path]:
    """Folders that hold the mark; links that lead out of the root are not followed."""
    if not folder.resolve().is_relative_to(root):
        return
    held = folder / mark
    if held.is_file() and held.resolve().is_relative_to(root):
        yield folder
        return
    if deeper:
        for entry in sorted(os.scandir(folder), key=lambda one: one.name):
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _marked(Path(entry.path), root, mark, deeper - 1)


def _name(folder: Path, root: Path) -> str:
    return folder.name if folder == root else folder.relative_to(root).as_posix()
