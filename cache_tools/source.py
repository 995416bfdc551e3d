"""Where training patches come from, cached or live: an endless sequence of batches that can begin anywhere.

source = CacheDataset(root, patch=64, batch=8, seed=0)           # or LiveSource(...)
source.set_position(epoch, step)                                 # to go on exactly where a run stopped
for stored in source.loader(workers=2):                          # endless; the caller stops
    batch = dequantize(stored, device)
    ...                                                          # stored.epoch, stored.step say where we are
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cache_tools.batch import PatchBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cache_tools.sample import Sampler


class PatchSource(IterableDataset[PatchBatch], ABC):
    """The batches of one rank, in an order that depends on seed, rank and world only."""

    def __init__(self, sampler: Sampler, *, look_ahead: int) -> None:
        self._sampler = sampler
        self._look_ahead = max(1, look_ahead)
        self._begin = 0

    @abstractmethod
    def make(self, epoch: int, step: int) -> PatchBatch:
        """One batch of this rank."""

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
        return DataLoader(self, batch_size=None, num_workers=workers, **options)

    def __iter__(self) -> Iterator[PatchBatch]:
        """Batches without end; a thread makes the next ones while the caller uses the last.

        Of n loader workers each makes every n-th batch, and the loader puts them back in order.
        """
        worker = get_worker_info()
        numbers = count(self._begin + worker.id, worker.num_workers) if worker else count(self._begin)
        places = (divmod(number, self.steps_per_epoch) for number in numbers)
        with ThreadPoolExecutor(1, "look-ahead") as thread:
            waiting = deque(thread.submit(self.make, *place) for place in islice(places, self._look_ahead))
            while True:
                waiting.append(thread.submit(self.make, *next(places)))
                yield waiting.popleft().result()
