"""The folders chosen at the start -> the caches and runs in them, by name. Nothing else can be asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_DEPTH = 3  # of folders below the chosen one: a home folder named by mistake shall not be walked whole
_CACHE_MARKER, _RUN_MARKER = "manifest.json", "config.yaml"


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
        return _find(self.cache_root, _CACHE_MARKER)

    def runs(self) -> dict[str, Path]:
        """Name -> run folder, as they are now."""
        return _find(self.run_root, _RUN_MARKER)

    def cache(self, name: str) -> Path:
        """The cache of this name. Names are looked up, never joined to a path, so that none can lead elsewhere."""
        return _look_up(self.caches(), name, "cache")

    def run(self, name: str) -> Path:
        """The run of this name."""
        return _look_up(self.runs(), name, "run")


def _look_up(known: dict[str, Path], name: str, kind: str) -> Path:
    if name not in known:
        shown = str(name)[:80]  # a forged request may send anything of any length
        raise Refusal(f"there is no {kind} of this name", where=shown, cure=nearest(shown, known))
    return known[name]


def _find(root: Path | None, marker: str) -> dict[str, Path]:
    if root is None:
        return {}
    return {_name(folder, root): folder for folder in sorted(_marked(root, root, marker, _MAX_DEPTH))}


def _marked(folder: Path, root: Path, marker: str, depth: int) -> Iterator[Path]:
    """Folders that hold the marker; links that lead out of the root are not followed."""
    if not folder.resolve().is_relative_to(root):
        return
    file = folder / marker
    if file.is_file() and file.resolve().is_relative_to(root):
        yield folder
        return
    if depth:
        for entry in sorted(os.scandir(folder), key=lambda one: one.name):
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _marked(Path(entry.path), root, marker, depth - 1)


def _name(folder: Path, root: Path) -> str:
    return folder.name if folder == root else folder.relative_to(root).as_posix()
