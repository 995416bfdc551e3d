"""A cache -> the items that are damaged, missing or foreign; on request moved to quarantine, to be made again."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

from cache_tools.format.errors import storage_failed
from cache_tools.format.layout import open_layout
from cache_tools.format.schema import SUFFIX
from cache_tools.format.store import Store, require_same_recipe
from cache_tools.write.pairs import Failure
from cache_tools.write.writer import rebuild_index, require_intact
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class VerifyReport:
    """What a check found. `unfinished` counts planned items that were never made."""

    depth: str
    items: int = 0
    failures: list[Failure] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    unfinished: int = 0


def verify(root: Path, *, full: bool, quarantine: bool = False) -> VerifyReport:
    """Quick: headers, chunk tables, sizes, recipe, index against folder. Full: every chunk's crc32 as well."""
    store = Store(root)
    manifest = store.manifest
    paths = store.item_paths()
    report = VerifyReport("full" if full else "quick", len(paths))
    damaged: list[Path] = []
    for path in tqdm(paths, unit="item", desc="verify", disable=None):
        reason = _fault(path, manifest.fingerprint, full=full)
        if reason is not None:
            report.failures.append(Failure(path.stem, reason))
            damaged.append(path)
    present = {path.name.removesuffix(SUFFIX) for path in paths}
    for entry in store.index_lines():
        if entry.id not in present:
            report.failures.append(Failure(entry.id, f"{store.item_path(entry.id)}: item is indexed but missing"))
    # More items than planned are no fault: a later run may have named fewer images.
    report.unfinished = max(0, manifest.planned - len(paths))
    if quarantine and report.failures:
        report.quarantined = _quarantine(store, damaged)
    return report


def _fault(path: Path, fingerprint: str, *, full: bool) -> str | None:
    """What is wrong with one item, or None."""
    try:
        layout = open_layout(path)
        require_same_recipe(path, layout.header.fingerprint, fingerprint)
        if layout.header.id != path.stem:
            return f"{path}: is item {layout.header.id} under another name"
        if full:
            require_intact(path)
    except (Refusal, OSError) as error:
        return str(error)
    return None


def _quarantine(store: Store, damaged: list[Path]) -> list[str]:
    """Move damaged items out of the cache, so that the next extraction makes them again."""
    moved: list[str] = []
    try:
        store.quarantine.mkdir(exist_ok=True)
        for path in damaged:
            os.replace(path, store.quarantine / path.name)
            moved.append(path.stem)
    except OSError as error:
        raise storage_failed(store.quarantine, error) from error
    rebuild_index(store, store.entries())
    return moved
