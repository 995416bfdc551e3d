"""A cache -> an endless supply of aligned random patches, the same for a given seed, whatever the number of workers.

    source = CacheDataset(root, patch=64, batch=8, seed=0)
    source.set_position(epoch, step)                    # to resume exactly where a run stopped
    for stored in source.loader(workers=2):             # endless; the caller stops
        batch = dequantize(stored, device)              # stored.epoch, stored.step: its number

Flips and rotations of cached features are an approximation, since networks are not equivariant; where a group was
cached with `--dihedral`, its eight exact variants are used instead.
Legend: B patches, E experts, C channels, P patch side in LR pixels, T tiles that a patch can touch along one side.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cache_tools.format.location import is_address
from cache_tools.format.schema import FEAT, FEAT_SCALE
from cache_tools.read.batch import PatchBatch
from cache_tools.read.gather import gather
from cache_tools.read.item_file import Check, tiles_of
from cache_tools.read.reader import CacheReader
from cache_tools.read.sampler import Group, Sampler, Sampling, Variant
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cache_tools.format.store import Entry
    from cache_tools.read.sampler import Crop

_BATCHES_FETCHED = 4  # ahead of the one being made: a download takes longer than a batch lasts


class CacheDataset(IterableDataset[PatchBatch]):
    """Random aligned LR, HR, SR and feature patches of a cache, as stored; `dequantize` makes them a FusionBatch.

    patch             side in LR pixels
    batch             patches per batch on this rank
    grid              patches begin at multiples of this (8 varied, 32 fastest) or flush with the far edge
    crops_per_region  patches drawn from each place that is read
    experts, items    which of them, None for all; `features=False` reads images only
    augment           flips and rotations
    samples           patches per epoch over all ranks; None: every image or region `crops_per_region` times
    seed, rank, world decide the sequence; the number of workers does not
    look_ahead        batches being read while the last one is used
    leave_out_small   leave out items smaller than the patch, instead of refusing the cache
    """

    def __init__(
        self,
        root: Path | str,
        *,
        patch: int = 64,
        batch: int = 8,
        grid: int = 8,
        crops_per_region: int = 1,
        experts: Sequence[str] | None = None,
        items: Sequence[str] | None = None,
        features: bool = True,
        augment: bool = True,
        samples: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        look_ahead: int = 2,
        leave_out_small: bool = False,
        check: Check = "first",
    ) -> None:
        self.reader = CacheReader(root, experts=experts, items=items, features=features, check=check)
        if not self.reader.has_hr:
            raise Refusal("has no HR images to train on", where=root, cure="extract with --hr")
        entries = _large_enough(self.reader, patch, leave_out_small)
        sampling = Sampling(patch, grid, crops_per_region, augment, seed, batch, samples, rank, world)
        self._sampler = Sampler(make_groups(entries), sampling)
        self._look_ahead = max(1, look_ahead)
        self._begin = 0
        self.patch = patch
        self.experts = self.reader.experts
        self.channels = self.reader.channels

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch and rank."""
        return self._sampler.steps

    def set_position(self, epoch: int, step: int = 0) -> None:
        """The next iteration begins with this batch. To resume after a batch: its epoch, its step + 1."""
        if epoch < 0 or not 0 <= step <= self.steps_per_epoch:
            raise ValueError(f"epoch {epoch}, step {step}: an epoch has {self.steps_per_epoch} steps")
        self._begin = epoch * self.steps_per_epoch + step

    def loader(self, workers: int = 0, **options: Any) -> DataLoader[PatchBatch]:
        """A DataLoader over whole batches: the same ones in the same order for any number of workers."""
        # batch_size=None: batches are made whole here, since crops of one region share their reads.
        return DataLoader(self, batch_size=None, num_workers=workers, **options)

    def __iter__(self) -> Iterator[PatchBatch]:
        """Batches without end; a thread makes the next ones while the caller uses the last.

        Of n loader workers each makes every n-th batch, and the loader puts them back in order.
        """
        worker = get_worker_info()
        stride = worker.num_workers if worker else 1
        numbers = count(self._begin + (worker.id if worker else 0), stride)
        places = (divmod(number, self.steps_per_epoch) for number in self._fetching_ahead(numbers))
        # One thread: reading waits for the disk and crc32 releases the GIL, and the order of batches stays fixed.
        with ThreadPoolExecutor(1, "look-ahead") as thread:
            waiting = deque(thread.submit(self.make, *place) for place in islice(places, self._look_ahead))
            while True:
                waiting.append(thread.submit(self.make, *next(places)))
                yield waiting.popleft().result()

    def _fetching_ahead(self, numbers: Iterator[int]) -> Iterator[int]:
        """The batches' numbers; the items of those that follow are on their way from object storage meanwhile."""
        if not is_address(self.reader.store.location):
            yield from numbers
        coming = deque(islice(numbers, _BATCHES_FETCHED))
        while True:
            coming.append(next(numbers))
            places = (divmod(number, self.steps_per_epoch) for number in coming)
            wanted = (crop.item for place in places for crop in self._sampler.batch(*place))
            self.reader.store.prefetch(list(dict.fromkeys(wanted)))
            yield coming.popleft()

    def make(self, epoch: int, step: int) -> PatchBatch:
        """One batch of this rank."""
        crops = self._sampler.batch(epoch, step)
        self._prefetch(crops)
        return gather(self.reader, crops, self.patch, epoch, step)

    def _prefetch(self, crops: Sequence[Crop]) -> None:
        """Have the system read all tiles of the batch at once instead of one after another."""
        for crop in crops:
            file = self.reader.file(crop.item)
            names = [name for name in file.layout.datasets if self._is_read(name)]
            file.prefetch(tiles_of(crop.top, crop.left, self.patch, self.patch), names)

    def _is_read(self, name: str) -> bool:
        return name not in {FEAT, FEAT_SCALE} or any(self.channels.values())


def make_groups(entries: Sequence[Entry]) -> list[Group]:
    """Index entries -> groups of one image or region each, in the order of their names."""
    by_group: dict[str, list[Entry]] = {}
    for entry in entries:
        by_group.setdefault(entry.group, []).append(entry)
    for name, members in by_group.items():
        if all(member.dihedral for member in members):
            cure = "extract again to complete it, or leave these items out"
            raise Refusal("has flipped variants but not the plain item", where=f"group {name}", cure=cure)
    return [
        Group(name, tuple(Variant(one.id, one.dihedral, one.height, one.width) for one in members))
        for name, members in sorted(by_group.items())
    ]


def _large_enough(reader: CacheReader, patch: int, leave_out: bool) -> list[Entry]:
    small = [entry for entry in reader.entries if min(entry.height, entry.width) < patch]
    if small and not leave_out:
        first = f"{small[0].id} is {small[0].width}x{small[0].height}"
        what = f"{len(small)} item(s) are smaller than a patch of {patch} ({first})"
        raise Refusal(
            what, where=reader.store.location, cure="choose a smaller patch, or leave them out (leave_out_small)"
        )
    entries = [entry for entry in reader.entries if min(entry.height, entry.width) >= patch]
    if not entries:
        raise Refusal(f"no item holds a patch of {patch}", where=reader.store.location, cure="choose a smaller patch")
    return entries
