"""Folders of images and the names of experts -> a cache, its items made by the workers of a Ray cluster.

The driver pairs the images, says which items are missing, hands them out and writes the index; it opens no expert.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tqdm import tqdm

from cache_tools.format.item import compression_filters
from cache_tools.storage.open import store_at
from cache_tools.write.extract import Batch, Extraction, Report, prepare
from cache_tools.write.recipe import make_recipe
from cache_tools.write.writer import ItemWriter
from experts.stored import stored_specs
from imaging.cluster.pool import WorkerPool
from imaging.cluster.schedule import WorkUnit
from imaging.malloc import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cache_tools.format.store import Entry, Recipe, Store
    from cache_tools.write.jobs import ItemJob
    from cache_tools.write.pairs import Failure
    from cache_tools.write.recipe import ExtractSettings
    from experts.spec import Expert, ExpertSpec
    from imaging.cluster.options import ClusterOptions
    from imaging.cluster.pool import Done


@dataclass(frozen=True)
class RecipeFacts:
    """What the experts of a worker come to; where it found their files is not compared."""

    recipe: Recipe
    specs: dict[str, ExpertSpec] = field(compare=False)


@dataclass(frozen=True)
class BatchWork:
    """A batch, whole, since its composition must not change; `finished` names what is not needed of it."""

    batch: Batch
    finished: frozenset[str]


@dataclass
class BatchAnswer:
    """What a worker made of a batch: entries of new items, items (and bytes) that another run has made meanwhile."""

    made: list[Entry] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def extract_on_ray(
    settings: ExtractSettings,
    open_experts: Callable[[], Sequence[Expert]],
    options: ClusterOptions,
    *,
    rank: int = 0,
    world: int = 1,
) -> Report:
    """As `extract`; the items are the same, bit for bit, where the workers compute as this machine does."""
    compression_filters(settings.compression)
    with WorkerPool[RecipeFacts, BatchWork, BatchAnswer](
        partial(ExtractWorker, settings, open_experts), options
    ) as pool:
        name = f"ray-{socket.gethostname()}-{os.getpid()}"
        run, left = prepare(settings, pool.facts.recipe, pool.facts.specs, rank=rank, world=world, index=name)
        jobs = {job.id: job for batch in left for job in batch if job.id not in run.finished}
        total = sum(_pixels(job) for job in jobs.values())
        units = [_unit(batch, run.finished) for batch in left]
        bar = tqdm(total=total / 1e6, unit="MP", desc="extract", disable=None, bar_format=_BAR)
        try:
            for number, done in enumerate(pool.run(units), 1):
                bar.set_postfix_str(f"batch {number}/{len(left)}, {pool.workers} workers", refresh=False)
                bar.update(min(done.unit.size / 1e6, bar.total - bar.n))  # not past it by rounding
                _take(run, done, jobs)
        finally:
            bar.close()
            run.finish()
    return run.report


_BAR = "{desc} {percentage:3.0f}%|{bar}| {n:.3f}/{total:.3f} MP of LR [{elapsed}<{remaining}, {rate_fmt}]{postfix}"


def _pixels(job: ItemJob) -> int:
    return job.height * job.width


def _unit(batch: Batch, finished: set[str]) -> WorkUnit[BatchWork]:
    there = frozenset(job.id for job in batch if job.id in finished)
    size = sum(_pixels(job) for job in batch if job.id not in there)
    return WorkUnit(batch[0].id, BatchWork(batch, there), size, batch[0].source.name)


def _take(run: Extraction, done: Done[BatchWork, BatchAnswer], jobs: dict[str, ItemJob]) -> None:
    if done.answer is None:
        for job in done.unit.work.batch:
            if job.id in jobs:
                run.fail(job.id, done.lost)
        return
    for entry in done.answer.made:
        run.take_made(entry)
    for item, size in done.answer.found.items():
        run.take_existing(jobs[item], size)
    for failure in done.answer.failures:
        run.fail(failure.item, failure.reason)


class ExtractWorker:
    """Holds the opened experts. Three batches at a time: one is read, one is computed, one is written."""

    def __init__(self, settings: ExtractSettings, open_experts: Callable[[], Sequence[Expert]]) -> None:
        self._settings, self._open_experts = settings, open_experts

    def open(self) -> RecipeFacts:
        """The recipe that these experts give; it is the same on every worker, or the run is refused."""
        keep_freed_memory()
        self._experts = self._open_experts()
        self._recipe = make_recipe(self._settings, self._experts)
        self._computing = threading.Lock()  # experts are not made for two images at once, nor is memory
        return RecipeFacts(self._recipe, stored_specs(self._experts))

    def make(self, work: BatchWork) -> BatchAnswer:
        """Read, run, commit. The index is left to the driver: one writer, whatever file system lies between."""
        store = store_at(self._settings.out)
        writer = _Collector(store)
        run = Extraction(self._recipe, store, self._settings.context, writer)
        run.finished |= work.finished
        loaded = run.read(work.batch)
        with self._computing:
            # Looked for only now: another run over the same cache may have made it while this batch waited.
            sizes = {job.id: store.size(job.id) for job in work.batch if job.id not in run.finished}
            found = {item: size for item, size in sizes.items() if size is not None}
            run.finished |= set(found)
            needed = any(one.job.id not in run.finished for one in loaded)
            outputs_of_batch = run.compute(loaded, self._experts) if needed else []
        for one, outputs in outputs_of_batch:
            run.write(one, outputs)
        return BatchAnswer(writer.entries, found, run.report.failures)


class _Collector(ItemWriter):
    """Commits items and keeps their index lines for the driver."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.entries: list[Entry] = []

    def note(self, entry: Entry) -> None:
        self.entries.append(entry)
