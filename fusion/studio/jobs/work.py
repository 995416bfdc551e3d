"""What a visitor asks for -> finished images on the shelf, made by infer.py's own pipeline; news on the way."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from fusion.inference.command import settle_tile
from fusion.inference.ensemble import EIGHTFOLD, SCALE
from fusion.inference.input_check import TROUBLES, warn_about
from fusion.inference.pipeline import Pipeline
from fusion.inference.upscale import Grid
from fusion.refinement.refine import count_tiles
from fusion.studio.jobs.array_recorder import ArrayRecorder
from fusion.studio.jobs.progress import EnsembleProgress
from fusion.studio.uploads import sentence, take_in
from imaging.malloc import give_back_memory
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from fusion.inference.ensemble import Ensemble
    from fusion.inference.jobs import Sized
    from fusion.inference.options import Options
    from fusion.studio.jobs.ensemble_cache import EnsembleCache
    from fusion.studio.jobs.job_queue import Ticket
    from fusion.studio.jobs.result_store import ResultStore
    from fusion.studio.jobs.result_view import ResultView
    from fusion.studio.uploads import Limits


@dataclass(frozen=True)
class Wish:
    """Files, and what is to be done with them."""

    paths: tuple[Path, ...]
    experts: tuple[str, ...]
    precision: str
    options: Options


@dataclass
class News:
    """How far a job has come; written by the worker, read by the page."""

    images: int = 0
    number: int = 0  # of the image under way, from 1
    name: str = ""
    doing: str = "opening the experts"
    watch: EnsembleProgress | None = None
    finished: list[str] = field(default_factory=list)  # names on the shelf
    amiss: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Studio:
    """The parts that every job needs; `folder` is the studio's own and goes with it."""

    workshop: EnsembleCache
    shelf: ResultStore
    limits: Limits
    folder: Path

    def work(self, wish: Wish, ticket: Ticket) -> None:
        """Make every image that can be made; what cannot is told in a sentence."""
        news = ticket.news = News(images=len(wish.paths))
        taken, news.amiss = take_in(wish.paths, Path(mkdtemp(prefix="job-", dir=self.folder)), self.limits)
        if not taken:
            return
        ensemble = self.workshop.open(wish.experts, wish.precision)
        watch = news.watch = EnsembleProgress(ensemble.names, ensemble.device, ticket.check)
        news.doing = "looking how large tiles may be"
        tile, _ = settle_tile(wish.options, watch.over(ensemble), taken)
        for number, one in enumerate(taken, 1):
            ticket.check()
            news.number, news.name = number, one.job.input.name
            news.remarks += _remarks(one)
            try:
                shown = self._make(one, wish.options, ensemble, tile, news)
            except Refusal as refusal:
                news.amiss.append(sentence(refusal))
            else:
                news.finished.append(self.shelf.put(shown))
            finally:
                give_back_memory()

    def _make(self, one: Sized, options: Options, ensemble: Ensemble, tile: int, news: News) -> ResultView:
        """One image through the pipeline, in a folder of its own; nothing stays of one that fails."""
        assert news.watch is not None
        folder = one.job.output.parent.parent
        folder.mkdir()
        try:
            buyer = self.workshop.buyer(ensemble, options)
            grid = Grid.of(one.height, one.width, tile, ensemble.margin, ensemble.multiple)
            refiner = self.workshop.refiner_for(options)
            refinements = 0 if refiner is None else count_tiles(refiner.preset, SCALE * one.height, SCALE * one.width)
            news.watch.begin(len(grid) * (len(EIGHTFOLD) if options.tta else 1), refinements)
            news.doing = "computing"
            album = ArrayRecorder(ensemble, news.watch, folder, buyer, refined=refiner is not None)
            watched = None if refiner is None else news.watch.over_refiner(refiner)
            pipeline = Pipeline(news.watch.over(ensemble), options, tile, album, buyer, watched)
            outcome = pipeline.run([one])
            for refusal in outcome.failed.values():
                raise refusal
            assert album.finished is not None
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return album.finished


def _remarks(one: Sized) -> list[str]:
    return [
        f"{one.job.input.name} shows {TROUBLES[kind].what}, which the experts may not have been trained for: "
        f"{TROUBLES[kind].cure}."
        for kind in warn_about([one.job.input])
    ]
