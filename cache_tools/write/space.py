"""Items to be made -> the bytes they need, and whether the disk has them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cache_tools.format.location import is_address
from cache_tools.format.schema import Header, item_bytes
from cache_tools.write.recipe import expert_entries
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cache_tools.format.store import Recipe
    from cache_tools.write.jobs import ItemJob

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def item_sizes(recipe: Recipe, jobs: Sequence[ItemJob]) -> int:
    """Bytes of all these items, as if uncompressed."""
    entries = expert_entries(recipe)
    known: dict[tuple[int, int, bool], int] = {}
    total = 0
    for job in jobs:
        key = (job.height, job.width, job.source.hr is not None)
        if key not in known:
            header = Header(
                id=job.id,
                group=job.group,
                source=job.source.name,
                # Hashes count with their length only.
                hr_sha256="0" * 64 if key[2] else None,
                lr_sha256="0" * 64,
                height=job.height,
                width=job.width,
                region=job.region,
                dihedral=job.dihedral,
                profile=recipe.profile,
                compression=recipe.compression,
                degradation=recipe.degradation,
                experts=entries,
                fingerprint="0" * 40,
            )
            known[key] = item_bytes(header)
        total += known[key]
    return total


def free_bytes(folder: Path) -> int:
    """Free bytes where `folder` is or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_room(location: Path | str, needed: int) -> None:
    """A run that cannot fit is refused before it starts; object storage has no end that could be asked for."""
    if is_address(location):
        return
    free = free_bytes(Path(location))
    if needed > free:
        what = f"{format_bytes(needed)} are needed, {format_bytes(free)} are free"
        cure = "free some space, or choose --profile, --regions or --no-features (see `python -m cache_tools plan`)"
        raise Refusal(what, where=location, cure=cure)


def format_bytes(size: float) -> str:
    """123456789 -> 123.5 MB."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{int(size)} {_UNITS[0]}"


def total_pixels(jobs: Iterable[ItemJob]) -> int:
    """LR pixels of all items."""
    return sum(job.height * job.width for job in jobs)
