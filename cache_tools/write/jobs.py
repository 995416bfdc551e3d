"""Sources -> the items to make: whole images or sampled regions, plain or in all eight flips and rotations.

The list, its order and its batches depend on the sources and settings only, never on existing items or
the number of ranks: so any run gives the same numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from cache_tools.format.checksum import short_hash
from cache_tools.format.schema import Region
from imaging.dihedral import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cache_tools.write.pairs import Source

_GRID = 8  # LR pixels between the places where a region may begin
_TRIES = 50  # per square, and per image for all of its squares
_LONGEST_STEM = 80  # with hash and place well below the 255 bytes of a file name


@dataclass(frozen=True)
class ItemJob:
    """One item to make; `height` and `width` are its LR size after the flip or rotation."""

    id: str
    group: str
    source: Source
    region: Region
    whole: bool
    dihedral: int
    height: int
    width: int


def make_jobs(sources: Iterable[Source], *, regions: int, region_size: int, seed: int, dihedral: bool) -> list[ItemJob]:
    """All items, in the order of their sources; `regions` 0 means whole images."""
    jobs: list[ItemJob] = []
    for source in sources:
        whole = Region(top=0, left=0, height=source.height, width=source.width)
        sampled = _sample_regions(source, regions, region_size, seed) if regions else [whole]
        for region in sampled:
            group = _item_id(source.name, None if region == whole else region)
            jobs += [_job(group, source, region, region == whole, k) for k in range(VARIANTS if dihedral else 1)]
    return jobs


def too_few_regions(items: Iterable[tuple[str, bool]], wanted: int, size: int) -> str | None:
    """(image, whether it is whole) of every upright item -> a line about images with no room for the regions wanted."""
    found = list(items)
    counts = Counter(image for image, _ in found)
    fewer = sum(count < wanted for count in counts.values())
    whole = len({image for image, is_whole in found if is_whole})
    if not wanted or not (fewer or whole):
        return None
    have = f"{fewer} of {len(counts)} images have fewer than {wanted} regions"
    return (
        f"{have}: they have no room for more of {size}x{size} LR pixels ({whole} are cached whole); see --region-size"
    )


def upright(jobs: Iterable[ItemJob]) -> list[tuple[str, bool]]:
    """Image, and whether it is whole, of every job that is not a turned copy."""
    return [(job.source.name, job.whole) for job in jobs if job.dihedral == 0]


def make_batches(jobs: Sequence[ItemJob], size: int) -> list[tuple[ItemJob, ...]]:
    """Neighbours of equal LR size, `size` at a time: fixed over the whole list, before it is shared out."""
    batches: list[tuple[ItemJob, ...]] = []
    for _, alike in groupby(jobs, key=lambda job: (job.height, job.width, job.whole)):
        run = list(alike)
        # A batch's size can change the last bits: batches are cut before ranks share them and items are skipped.
        batches += [tuple(run[first : first + size]) for first in range(0, len(run), size)]
    return batches


def owned(batches: Sequence[tuple[ItemJob, ...]], rank: int, world: int) -> list[tuple[ItemJob, ...]]:
    """The batches of one rank: by the hash of their first id, so that no item has two owners."""
    return [batch for batch in batches if int(short_hash(batch[0].id), 16) % world == rank]


def _job(group: str, source: Source, region: Region, whole: bool, variant: int) -> ItemJob:
    size = (region.height, region.width) if variant % 2 == 0 else (region.width, region.height)
    item = f"{group}-d{variant}" if variant else group
    return ItemJob(item, group, source, region, whole, variant, *size)


def _item_id(name: str, region: Region | None) -> str:
    """Readable, safe as a file name, and unique by the hash of the whole relative path."""
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", name.rpartition("/")[2]).strip("-")[:_LONGEST_STEM] or "image"
    place = f"-y{region.top}x{region.left}" if region else ""
    return f"{stem}-{short_hash(name)}{place}"


def _sample_regions(source: Source, count: int, size: int, seed: int) -> list[Region]:
    """`count` squares that do not overlap; fewer where an image has no room for more, a small image whole."""
    # Seeded by the name: adding or removing other images does not move the regions of this one.
    rng = np.random.default_rng([seed, int(short_hash(source.name), 16)])
    best: list[Region] = []
    for _ in range(_TRIES):
        found = _scatter(source, count, min(size, source.height), min(size, source.width), rng)
        best = max(best, found, key=len)
        if len(best) == count:
            break
    return best


def _scatter(source: Source, count: int, height: int, width: int, rng: np.random.Generator) -> list[Region]:
    """One attempt: squares on a grid of 8, each drawn until it keeps clear of the others."""
    rows, columns = (source.height - height) // _GRID + 1, (source.width - width) // _GRID + 1
    found: list[Region] = []
    for _ in range(count):
        places = ((_GRID * int(rng.integers(rows)), _GRID * int(rng.integers(columns))) for _ in range(_TRIES))
        drawn = (Region(top=top, left=left, height=height, width=width) for top, left in places)
        region = next((one for one in drawn if not any(_overlap(one, other) for other in found)), None)
        if region is None:
            break
        found.append(region)
    return found


def _overlap(one: Region, other: Region) -> bool:
    return abs(one.top - other.top) < one.height and abs(one.left - other.left) < one.width
