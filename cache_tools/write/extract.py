"""Folders of images and experts -> a cache: whatever is missing is made, whatever is there is kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

from cache_tools.format.errors import StorageFailed
from cache_tools.format.item import compression_filters
from cache_tools.format.layout import read_header
from cache_tools.format.store import Entry, Store, require_same_recipe
from cache_tools.write.encode_item import encode_item
from cache_tools.write.jobs import ItemJob, make_batches, owned
from cache_tools.write.load import LoadedJob, load_job
from cache_tools.write.overlap import overlapped
from cache_tools.write.pairs import Failure
from cache_tools.write.recipe import jobs_for, make_header, make_manifest, make_recipe, require_unmixed
from cache_tools.write.run_experts import run_experts
from cache_tools.write.space import item_sizes, require_room
from cache_tools.write.writer import ItemWriter, open_store
from experts.spec import ExpertOutput
from imaging.hashes import file_sha256
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from cache_tools.format.schema import Header
    from cache_tools.format.store import Recipe
    from cache_tools.write.recipe import ExtractSettings
    from experts.spec import Expert

log = logging.getLogger(__name__)

Batch = tuple[ItemJob, ...]
Answer = tuple[LoadedJob, Sequence[ExpertOutput]]


@dataclass
class Report:
    """What a run did: ids made, ids that were there, and images that failed with the reason."""

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
    """Make this rank's missing items; `skip` names items that are wanted no more."""
    compression_filters(settings.compression)
    jobs, failures = jobs_for(settings)
    recipe = make_recipe(settings, experts)
    store = Store(settings.out)
    require_unmixed(store, recipe)
    mine = owned(make_batches(jobs, settings.batch), rank, world)
    run = Extraction(recipe, store, experts, settings.context, rank)
    report = run.report
    report.failures += [failure for number, failure in enumerate(failures) if number % world == rank]
    run.look_for([job for batch in mine for job in batch], skip)
    left = jobs_left(mine, run.settled)
    require_room(store.root, item_sizes(recipe, [job for batch in left for job in batch if job.id not in run.settled]))
    open_store(store, make_manifest(recipe, len(jobs)))
    run.make(left)
    return report


def jobs_left(batches: Sequence[Batch], settled: set[str]) -> list[Batch]:
    """The batches in which anything is missing, whole: a batch's composition never changes its numbers."""
    return [batch for batch in batches if any(job.id not in settled for job in batch)]


class Extraction:
    """One rank's run over one cache."""

    def __init__(self, recipe: Recipe, store: Store, experts: Sequence[Expert], context: int, rank: int) -> None:
        self.report = Report()
        self.settled: set[str] = set()
        self._recipe = recipe
        self._store = store
        self._experts = experts
        self._context = context
        self._writer = ItemWriter(store, rank)

    def look_for(self, jobs: Sequence[ItemJob], skip: frozenset[str]) -> None:
        """Settle what is there already: same recipe, same source files; index what a killed run left unindexed."""
        indexed = {entry.id: entry for entry in self._store.index_lines()}
        for job in jobs:
            path = self._store.item_path(job.id)
            if job.id in skip:
                self.settled.add(job.id)
            elif path.exists():
                self.settled.add(job.id)
                entry = indexed.get(job.id)
                if entry is None or entry.bytes != path.stat().st_size:
                    entry = Entry.of(read_header(path), path.stat().st_size)
                    self._writer.note(entry)
                require_same_recipe(path, entry.fingerprint, self._recipe.fingerprint)
                if entry.stamp == job.source.stamp or _same_files(read_header(path), job):
                    self.report.kept.append(job.id)
                else:
                    self.report.failures.append(
                        Failure(job.id, f"source image changed since it was cached; delete {path} to cache it again")
                    )

    def make(self, batches: Sequence[Batch]) -> None:
        """Read, ask, write, overlapped."""
        total = sum(job.id not in self.settled for batch in batches for job in batch)
        with tqdm(total=total, unit="item", desc="extract", disable=None) as bar:

            def write(answers: list[Answer]) -> None:
                for loaded, outputs in answers:
                    self._write(loaded, outputs)
                    bar.update()

            overlapped(batches, self._read, self._compute, write)

    def _read(self, batch: Batch) -> list[LoadedJob]:
        loaded = [self._read_one(job) for job in batch]
        return [one for one in loaded if one is not None]

    def _read_one(self, job: ItemJob) -> LoadedJob | None:
        try:
            return load_job(job, self._context)
        except (Refusal, OSError) as error:
            self._fail(job.id, error)
            return None

    def _compute(self, batch: list[LoadedJob]) -> list[Answer]:
        if not batch:
            return []
        try:
            answers = run_experts(self._experts, batch)
        except Refusal as error:
            if len(batch) > 1:  # one bad image must not cost its neighbours
                return [answer for loaded in batch for answer in self._compute([loaded])]
            self._fail(batch[0].job.id, error)
            return []
        return [pair for pair in zip(batch, answers, strict=True) if pair[0].job.id not in self.settled]

    def _write(self, loaded: LoadedJob, outputs: Sequence[ExpertOutput]) -> None:
        try:
            arrays = encode_item(self._recipe, loaded, outputs)
            self._writer.write(make_header(self._recipe, loaded), arrays, loaded.job.source.stamp)
            self.report.made.append(loaded.job.id)
        except StorageFailed:
            raise
        except Refusal as error:
            self._fail(loaded.job.id, error)

    def _fail(self, item: str, error: Exception) -> None:
        log.warning("failed: %s: %s", item, error)
        self.report.failures.append(Failure(item, str(error)))


def _same_files(header: Header, job: ItemJob) -> bool:
    """The slow and certain answer to whether an item was made from these very files."""
    source = job.source
    found = tuple(None if path is None else file_sha256(path) for path in (source.hr, source.lr))
    return found == (header.hr_sha256, header.lr_sha256)
