"""Jobs and an ensemble -> images on disk: while one image is computed, the next is read and the last one written."""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from fusion.inference.ensemble import EIGHTFOLD, PLAIN, in_turn, run_tile
from fusion.inference.image_writer import DiskFull, ImageWriter
from fusion.inference.jobs import RunResult, megapixels_of, part_of, remove_temporaries
from fusion.inference.oom_retry import OutOfMemoryRetry
from fusion.inference.refining import Refining, with_refiner
from fusion.inference.report.provenance import KEY, is_current, make_manifest, write_record
from fusion.inference.source import Source, read_source
from fusion.inference.upscale import Grid, channels_of, upscale
from imaging.files import check_format
from imaging.hashes import file_sha256
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from fusion.budget.run import BudgetRunner
    from fusion.inference.ensemble import Ensemble
    from fusion.inference.jobs import ImageJob, Sized
    from fusion.inference.options import Options
    from fusion.inference.upscale import Collector
    from fusion.refinement.open import AnyRefiner

log = logging.getLogger(__name__)


@dataclass
class _Open:
    """An image whose last rows are on their way to the disk."""

    job: ImageJob
    writer: ImageWriter
    manifest: dict[str, Any]
    seen: dict[str, Any]
    megapixels: float


class Pipeline:
    """One run over many images; `tile` is settled before (0: whole images)."""

    def __init__(
        self,
        ensemble: Ensemble,
        options: Options,
        tile: int,
        collector: Collector | None = None,
        runner: BudgetRunner | None = None,
        refiner: AnyRefiner | None = None,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        """`turn` is entered for each tile, by those who let two pipelines take turns on one device."""
        # A requested size is recorded as what it became; an automatic one as such: it differs from run to run.
        options = options if options.tile is None else replace(options, tile=tile)
        self.ensemble, self.options, self.tile = with_refiner(ensemble, refiner), options, tile
        self._collector, self._runner = collector, runner
        turns = EIGHTFOLD if options.tta else PLAIN
        if runner is not None:
            run = partial(runner.run_tile, ensemble, turns=turns, maps=collector is not None)
        else:
            run = partial(run_tile, ensemble, turns=turns, maps=collector is not None)
        in_its_turn = run if turn is None else in_turn(turn, run)
        self._retry = OutOfMemoryRetry(in_its_turn, ensemble.margin, ensemble.multiple, ensemble.scale)
        self.result = RunResult(events=self._retry.events)
        assert (refiner is None) == (options.refine is None)
        self._refining = Refining(refiner, options.refine, self.result) if refiner and options.refine else None

    def run(
        self,
        sized: Sequence[Sized],
        refused: Sequence[tuple[ImageJob, Refusal]] = (),
        shard: tuple[int, int] = (0, 1),
    ) -> RunResult:
        """Jobs as `measure_jobs` gives them: every image of the shard that can be made is made; the rest is listed."""
        began = time.perf_counter()
        remove_temporaries([*(one.job for one in sized), *(job for job, _ in refused)])
        self.plan(sized)
        for job, refusal in refused:
            self._fail(job, refusal)
        self.make(part_of(sized, shard))
        self.result.seconds = time.perf_counter() - began
        return self.result

    def plan(self, sized: Sequence[Sized]) -> None:
        """Over all images, those already there and other shards' too: a resumed run and each shard plan the same."""
        if self._runner is not None:
            self._runner.plan(sized, self._grid)

    def make(self, sized: Sequence[Sized]) -> RunResult:
        """These images, of those that were planned."""
        sized = self.outstanding(sized)
        megapixels = sum(megapixels_of(one, self.ensemble.scale) for one in sized)
        bar = tqdm(total=megapixels, unit="MP", desc="upscale", bar_format=BAR)
        # One thread: reading an image ahead hides the disk, more would only hold more images.
        with bar, ThreadPoolExecutor(1, "read") as reader:
            self._make_all(sized, reader, bar)
        return self.result

    def outstanding(self, sized: Sequence[Sized]) -> list[Sized]:
        """Without those that are there already, if they may be skipped."""
        return [one for one in sized if not self._skips(one.job)]

    def manifest(self, input_sha256: str) -> dict[str, Any]:
        """What an image made now would carry."""
        return make_manifest(input_sha256, self.ensemble.identity, self.options.manifest())

    def _skips(self, job: ImageJob) -> bool:
        if not self.options.skip_existing or not job.output.is_file():
            return False
        current = is_current(job.output, self.manifest(file_sha256(job.input)))
        if current:
            self.result.skipped.append(job.output)
        else:
            log.info("%s: exists, but was not made by these weights and options; made again", job.output)
        return current

    def _make_all(self, sized: Sequence[Sized], reader: ThreadPoolExecutor, bar: tqdm[NoReturn]) -> None:
        previous: _Open | None = None
        try:
            for number, (one, reading) in enumerate(self._read_ahead(sized, reader), 1):
                progress = _Progress(bar, f"image {number}/{len(sized)}", one, self.ensemble.scale)
                try:
                    current = self._make(one.job, reading.result(), progress)
                except DiskFull:
                    raise
                except Refusal as refusal:
                    self._fail(one.job, refusal)
                    continue
                # Only now: while this image was computed, the writer of the one before had time to finish.
                previous, settled = current, previous
                self._settle(settled)
        finally:
            self._settle(previous)

    def _read_ahead(self, sized: Sequence[Sized], reader: ThreadPoolExecutor) -> Iterator[tuple[Sized, Future[Source]]]:
        """Each image with its reading already under way, the next one's too."""
        read = partial(read_source, background=self.options.background)
        pending: Future[Source] | None = None
        for index, one in enumerate(sized):
            reading = pending or reader.submit(read, one.job.input)
            following = sized[index + 1 : index + 2]
            pending = reader.submit(read, following[0].job.input) if following else None
            yield one, reading

    def _make(self, job: ImageJob, source: Source, progress: _Progress) -> _Open:
        """Compute one image; its last rows may still be on their way when this returns."""
        began = time.perf_counter()
        manifest = self.manifest(source.sha256)
        depth = self.options.depth or source.depth
        scale = self.ensemble.scale
        height, width = self.options.size.of(source.height, source.width, scale)
        # Before the work: the writer would refuse the same after it.
        source.refuse_transparency(job.output.suffix)
        check_format(job.output, depth, transparent=source.alpha_HW is not None, longest=max(height, width))
        tile, grid = self.side, self._grid(source)
        progress.tiles = len(grid)
        if self._runner is not None:
            self.result.plans[job.item] = self._runner.document(job.item)
        collector = self._collector.start(job, source, manifest) if self._collector else None
        is_resized = (height, width) != (scale * source.height, scale * source.width)
        writer = ImageWriter(
            job.output,
            height=height,
            width=width,
            channels=channels_of(source),
            depth=depth,
            icc=source.icc,
            text={KEY: json.dumps(manifest)},
            metadata=None if self.options.strip_metadata else source.metadata((height, width)),
            quality=self.options.quality,
        )
        try:
            upscale(
                source,
                job.item,
                grid,
                self._retry,
                writer,
                self.ensemble.device,
                depth=depth,
                collector=collector,
                rework=self._refining and self._refining.of(source, job.item, collector),
                size=(height, width) if is_resized else None,
                scale=scale,
                tick=progress.tick,
            )
        except BaseException:
            writer.abandon()
            raise
        seconds = time.perf_counter() - began
        events = list(self._retry.events)
        seen: dict[str, Any] = {"tile": tile, "tiles": len(grid), "seconds": round(seconds, 3), "events": events}
        if is_resized:
            seen["size"] = [width, height]
        if job.item in self.result.guards:
            seen["refined"] = self.result.guards[job.item]
        if collector is not None:
            collector.finish(seen, self.result.plans.get(job.item))
        return _Open(job, writer, manifest, seen, progress.megapixels)

    @property
    def side(self) -> int:
        """Of tiles: as settled before, or what memory has allowed since."""
        return min(self.tile, self._retry.limit or self.tile) if self.tile else 0

    def _grid(self, source: Source) -> Grid:
        return Grid.of(source.height, source.width, self.side, self.ensemble.margin, self.ensemble.multiple)

    def _settle(self, finished: _Open | None) -> None:
        """Wait for the disk; then the record beside the image."""
        if finished is None:
            return
        try:
            finished.writer.result()
            write_record(finished.job.output, finished.manifest, finished.seen)
        except DiskFull:
            raise
        except Refusal as refusal:
            self._fail(finished.job, refusal)
            return
        self.result.written.append(finished.job.output)
        self.result.megapixels += finished.megapixels

    def _fail(self, job: ImageJob, refusal: Refusal) -> None:
        log.error("%s", refusal)
        self.result.failed[job.input] = refusal


BAR = "{desc} {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} MP [{elapsed}<{remaining}, {rate_noinv_fmt}]{postfix}"


class _Progress:
    """One image's share of the bar: images, tiles, output megapixels per second, and how long it will take."""

    def __init__(self, bar: tqdm[NoReturn], which: str, one: Sized, scale: int) -> None:
        self._bar, self._which = bar, which
        self.megapixels = megapixels_of(one, scale)
        self.tiles, self._done = 1, 0

    def tick(self) -> None:
        """One tile is done; tiles overlap, so each adds its share of the image."""
        self._done += 1
        self._bar.set_postfix_str(f"{self._which}, tile {self._done}/{self.tiles}", refresh=False)
        self._bar.update(min(self.megapixels / self.tiles, self._bar.total - self._bar.n))  # not past it by rounding
