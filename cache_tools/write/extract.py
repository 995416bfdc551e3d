"""Folders of images and experts -> a cache: missing items are made, existing ones kept."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from tqdm import tqdm

from cache_tools.format.errors import StorageFailed
from cache_tools.format.item import compression_filters
from cache_tools.format.store import Entry, require_same_recipe
from cache_tools.storage.open import store_at
from cache_tools.write.encode_item import encode_item
from cache_tools.write.jobs import ItemJob, make_batches, owned, too_few_regions, upright
from cache_tools.write.load import LoadedJob, load_job
from cache_tools.write.pairs import Failure, tell_unread
from cache_tools.write.recipe import jobs_for, make_header, make_manifest, make_recipe, require_unmixed
from cache_tools.write.run_experts import run_experts
from cache_tools.write.space import item_sizes, require_room
from cache_tools.write.writer import ItemWriter, name_of_rank, open_store
from experts.spec import ExpertOutput
from experts.stored import stored_specs
from imaging.hashes import file_sha256
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cache_tools.format.schema import Header
    from cache_tools.format.store import Recipe, Store
    from cache_tools.write.recipe import ExtractSettings
    from experts.spec import Expert, ExpertSpec

log = logging.getLogger(__name__)

Input = TypeVar("Input")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
Batch = tuple[ItemJob, ...]
JobOutputs = tuple[LoadedJob, Sequence[ExpertOutput]]


@dataclass
class Report:
    """What a run did: ids made, ids that existed already, and images that failed with the reason."""

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def extract(
    settings: ExtractSettings,
    experts: Sequence[Expert],
    *,
    rank: int = 0,
    world: int = 1,
    skip: frozenset[str] = frozenset(),
) -> Report:
    """Make this rank's missing items; `skip` names items that are not needed any more."""
    # First, so that a missing compressor is refused before hours of work and not at the first item.
    compression_filters(settings.compression)
    recipe, index = make_recipe(settings, experts), name_of_rank(rank)
    specs = stored_specs(experts)
    run, left = prepare(settings, recipe, specs, rank=rank, world=world, skip=skip, index=index)
    try:
        run.make(left, experts)
    finally:
        run.finish()
    return run.report


def prepare(
    settings: ExtractSettings,
    recipe: Recipe,
    specs: Mapping[str, ExpertSpec],
    *,
    index: str,
    rank: int = 0,
    world: int = 1,
    skip: frozenset[str] = frozenset(),
) -> tuple[Extraction, list[Batch]]:
    """The cache opened for writing, and this rank's batches in which anything is missing; all refusals come here."""
    jobs, failures = jobs_for(settings, recipe.scale)
    few = too_few_regions(upright(jobs), settings.regions, settings.region_size)
    if rank == 0:
        tell_unread(settings.hr, settings.lr)
        if few:
            log.warning("%s", few)
    store = store_at(settings.out)
    require_unmixed(store, recipe)
    mine = owned(make_batches(jobs, settings.batch), rank, world)
    run = Extraction(recipe, store, settings.context, ItemWriter(store, index))
    # Every rank finds the same failures; each is reported by one of them.
    run.report.failures += [failure for number, failure in enumerate(failures) if number % world == rank]
    run.find_existing([job for batch in mine for job in batch], skip)
    left = remaining_batches(mine, run.finished)
    missing = [job for batch in left for job in batch if job.id not in run.finished]
    require_room(store.location, item_sizes(recipe, missing))
    # Only now, after every refusal: a run that does not start leaves an existing cache untouched.
    open_store(store, make_manifest(recipe, len(jobs), specs))
    return run, left


def remaining_batches(batches: Sequence[Batch], finished: set[str]) -> list[Batch]:
    """The batches in which anything is missing, whole: a batch's composition never changes its numbers."""
    return [batch for batch in batches if any(job.id not in finished for job in batch)]


class Extraction:
    """One rank's run over one cache."""

    def __init__(self, recipe: Recipe, store: Store, context: int, writer: ItemWriter) -> None:
        self.report = Report()
        self.finished: set[str] = set()
        self._recipe = recipe
        self._store = store
        self._context = context
        self._writer = writer

    def find_existing(self, jobs: Sequence[ItemJob], skip: frozenset[str]) -> None:
        """Mark existing items as finished (same recipe, same source files); index what a killed run left unindexed."""
        indexed = {entry.id: entry for entry in self._store.index_lines()}
        sizes = self._store.sizes()
        for job in jobs:
            if job.id in skip:
                self.finished.add(job.id)
            elif job.id in sizes:
                self.take_existing(job, sizes[job.id], indexed.get(job.id))

    def take_existing(self, job: ItemJob, size: int, entry: Entry | None = None) -> None:
        """Keep an item that is there, unless it was made from other files or by another recipe."""
        place = self._store.place(job.id)
        self.finished.add(job.id)
        if entry is None or entry.bytes != size:
            entry = Entry.of(self._store.header(job.id), size)
            self._writer.note(entry)
        require_same_recipe(place, entry.fingerprint, self._recipe.fingerprint)
        # Unchanged sizes and times mean unchanged files; otherwise (a copy, a touch) hashes decide.
        if entry.stamp == job.source.stamp or _same_files(self._store.header(job.id), job):
            self.report.kept.append(job.id)
        else:
            self.report.failures.append(
                Failure(job.id, f"source image changed since it was cached; delete {place} to cache it again")
            )

    def make(self, batches: Sequence[Batch], experts: Sequence[Expert]) -> None:
        """Read, run, write, overlapped."""
        total = sum(job.id not in self.finished for batch in batches for job in batch)
        with tqdm(total=total, unit="item", desc="extract", disable=None) as bar:

            def write(outputs_of_batch: list[JobOutputs]) -> None:
                for loaded, outputs in outputs_of_batch:
                    self.write(loaded, outputs)
                    bar.update()

            run_overlapped(batches, self.read, lambda batch: self.compute(batch, experts), write)

    def read(self, batch: Batch) -> list[LoadedJob]:
        """The images of a batch; one that cannot be read is listed as failed."""
        loaded = [self._read_one(job) for job in batch]
        return [one for one in loaded if one is not None]

    def _read_one(self, job: ItemJob) -> LoadedJob | None:
        try:
            return load_job(job, self._context)
        except (Refusal, OSError) as error:
            self.fail(job.id, str(error))
            return None

    def compute(self, batch: list[LoadedJob], experts: Sequence[Expert]) -> list[JobOutputs]:
        """Every expert's output for every image of a batch that is not finished."""
        if not batch:
            return []
        try:
            outputs_of_batch = run_experts(experts, batch)
        except Refusal as error:
            reason = str(error)
        else:
            return [pair for pair in zip(batch, outputs_of_batch, strict=True) if pair[0].job.id not in self.finished]
        # Outside the except block, whose traceback would hold the failed batch's tensors while the next run needs room.
        if len(batch) > 1:  # one bad image must not cost its neighbours
            return [job_outputs for loaded in batch for job_outputs in self.compute([loaded], experts)]
        self.fail(batch[0].job.id, reason)
        return []

    def write(self, loaded: LoadedJob, outputs: Sequence[ExpertOutput]) -> None:
        """Encode and commit one item."""
        try:
            arrays = encode_item(self._recipe, loaded, outputs)
            self._writer.write(make_header(self._recipe, loaded), arrays, loaded.job.source.stamp)
            self.report.made.append(loaded.job.id)
        # A full disk fails every later item too: it ends the run, where a bad image does not.
        except StorageFailed:
            raise
        except Refusal as error:
            self.fail(loaded.job.id, str(error))

    def finish(self) -> None:
        """Complete the index."""
        self._writer.finish()

    def take_made(self, entry: Entry) -> None:
        """Note an item that a worker elsewhere has committed."""
        self._writer.note(entry)
        self.finished.add(entry.id)
        self.report.made.append(entry.id)

    def fail(self, item: str, reason: str) -> None:
        """List an item as failed."""
        log.warning("failed: %s: %s", item, reason)
        self.report.failures.append(Failure(item, reason))


def _same_files(header: Header, job: ItemJob) -> bool:
    """Whether an item was made from these very files, by hash: slow, for files whose times alone may have changed."""
    source = job.source
    found = tuple(None if path is None else file_sha256(path) for path in (source.hr, source.lr))
    return found == (header.hr_sha256, header.lr_sha256)


def run_overlapped(
    inputs: Iterable[Input],
    read: Callable[[Input], Loaded],
    compute: Callable[[Loaded], Result],
    write: Callable[[Result], None],
    *,
    depth: int = 2,
) -> None:
    """Run read | compute | write, `compute` on the caller's thread; order is kept, the first error ends all.

    Decoding and fsync wait for the disk while the experts keep the device busy. At most `depth` inputs are read ahead
    and `depth` results wait to be written, so memory stays bounded. One thread each: items are written in order.
    """
    waiting = iter(inputs)
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        ahead: deque[Future[Loaded]] = deque(reader.submit(read, item) for item in islice(waiting, depth))
        behind: deque[Future[None]] = deque()
        try:
            while ahead:
                loaded = ahead.popleft().result()
                ahead.extend(reader.submit(read, item) for item in islice(waiting, 1))
                behind.append(writer.submit(write, compute(loaded)))
                if len(behind) > depth:
                    behind.popleft().result()
            while behind:
                behind.popleft().result()
        except BaseException:
            for future in (*ahead, *behind):
                future.cancel()
            raise
