"""An image's job -> the image, made in a process of a cluster that holds the opened ensemble."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion.budget.run import BudgetRunner
from fusion.inference.command import EnsembleFacts
from fusion.inference.memory import settle_tile
from fusion.inference.pipeline import Pipeline
from fusion.inference.refining import with_refiner
from fusion.inference.report.gallery import Gallery
from imaging.malloc import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion.inference.command import Request
    from fusion.inference.ensemble import Ensemble
    from fusion.inference.jobs import RunResult, Sized
    from fusion.inference.report.page import ReportImage
    from fusion.refinement.open import AnyRefiner

    OpenAll = Callable[[], tuple[Ensemble, AnyRefiner | None]]


@dataclass(frozen=True)
class ImageWork:
    """One image and the tile size of the run."""

    sized: Sized
    tile: int


@dataclass(frozen=True)
class ImageAnswer:
    """What came of an image: the run's result for it alone, and its part of the report."""

    result: RunResult
    report: list[ReportImage]


class InferWorker:
    """Two images at a time: while one is computed, the other is read or written; tiles take turns on the device."""

    def __init__(self, request: Request, sized: Sequence[Sized], open_all: OpenAll) -> None:
        self._request, self._sized, self._open_all = request, sized, open_all

    def open(self) -> EnsembleFacts:
        """Open the experts and the fusion model; choose a tile size by this machine's memory."""
        keep_freed_memory()
        ensemble, self._refiner = self._open_all()
        self._ensemble = with_refiner(ensemble, self._refiner)
        self._computing, self._planning = threading.Lock(), threading.Lock()
        self._runner: BudgetRunner | None = None
        self._limit: int | None = None
        return EnsembleFacts.of(self._ensemble, settle_tile(self._request.options, self._ensemble, self._sized)[0])

    def make(self, work: ImageWork) -> ImageAnswer:
        """The image under its final name, or why not."""
        with self._planning:
            self._plan(work.tile)
        # Smaller than the run's where an earlier image has found that memory does not suffice.
        tile = min(work.tile, self._limit or work.tile)
        gallery = Gallery(self._ensemble, self._request.hr, self._runner) if self._request.report else None
        options, turn = self._request.options, self._computing
        pipeline = Pipeline(self._ensemble, options, tile, gallery, self._runner, self._refiner, turn)
        result = pipeline.make([work.sized])
        if gallery is not None:
            gallery.add_skipped([work.sized.job], result)
        self._limit = pipeline.side or None
        return ImageAnswer(result, gallery.images if gallery is not None else [])

    def _plan(self, tile: int) -> None:
        """Once, over all images of the run: a budget is shared out among them."""
        if self._request.budget_model is None or self._runner is not None:
            return
        runner = BudgetRunner.load(self._request.budget_model, self._ensemble, self._request.options)
        Pipeline(self._ensemble, self._request.options, tile, runner=runner).plan(self._sized)
        self._runner = runner
