"""A visitor's request -> finished images in the result store, by infer.py's own pipeline; its status on the way."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from fusion.inference.ensemble import EIGHTFOLD
from fusion.inference.input_check import TROUBLES, warn_about
from fusion.inference.memory import settle_tile
from fusion.inference.pipeline import Pipeline
from fusion.inference.upscale import Grid
from fusion.refinement.refine import count_tiles
from fusion.studio.jobs.array_recorder import ArrayRecorder
from fusion.studio.jobs.progress import EnsembleProgress
from fusion.studio.uploads import accept_uploads, user_message
from imaging.malloc import give_back_memory
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from fusion.inference.ensemble import Ensemble
    from fusion.inference.jobs import Sized
    from fusion.inference.options import Options
    from fusion.studio.jobs.ensemble_cache import EnsembleCache
    from fusion.studio.jobs.job_queue import QueuedJob
    from fusion.studio.jobs.result_store import ResultStore
    from fusion.studio.jobs.result_view import ResultView
    from fusion.studio.uploads import Limits
    from imaging.device import Precision


@dataclass(frozen=True)
class UpscaleRequest:
    """Uploaded files, and how they are to be upscaled."""

    paths: tuple[Path, ...]
    experts: tuple[str, ...]
    precision: Precision
    options: Options


@dataclass
class UpscaleStatus:
    """How far a job has come; written by the worker's thread, read by the page's."""

    images: int = 0
    number: int = 0  # of the current image, from 1
    name: str = ""
    step: str = "opening the experts"
    progress: EnsembleProgress | None = None
    finished: list[str] = field(default_factory=list)  # names in the result store
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Upscaler:
    """What every job needs; `folder` is temporary and belongs to the studio."""

    ensembles: EnsembleCache
    results: ResultStore
    limits: Limits
    folder: Path

    def run(self, request: UpscaleRequest, job: QueuedJob) -> None:
        """Make every image that can be made; each of the others leaves a message among the failures."""
        status = job.status = UpscaleStatus(images=len(request.paths))
        folder = Path(mkdtemp(prefix="job-", dir=self.folder))
        accepted, status.failures = accept_uploads(request.paths, folder, self.limits)
        if not accepted:
            return
        ensemble = self.ensembles.open(request.experts, request.precision)
        progress = status.progress = EnsembleProgress(ensemble.names, ensemble.device, job.check)
        status.step = "choosing the tile size"
        # Once for the whole job, as infer.py does for a folder: a file's bytes depend on the tiles.
        tile, _ = settle_tile(request.options, progress.wrap(ensemble), accepted)
        for number, sized in enumerate(accepted, 1):
            job.check()
            status.number, status.name = number, sized.job.input.name
            status.warnings += _input_warnings(sized)
            try:
                result = self._upscale(sized, request.options, ensemble, tile, status)
            except Refusal as refusal:
                status.failures.append(user_message(refusal))
            else:
                status.finished.append(self.results.add(result))
            finally:
                give_back_memory()  # the studio lives long; between jobs it should be as small as at the start

    def _upscale(
        self, sized: Sized, options: Options, ensemble: Ensemble, tile: int, status: UpscaleStatus
    ) -> ResultView:
        """One image through the pipeline, in a folder of its own; nothing stays of one that fails."""
        progress = status.progress
        assert progress is not None
        folder = sized.job.output.parent.parent  # of FOLDER/out/NAME, as `accept_uploads` plans outputs
        folder.mkdir()
        try:
            budget_runner = self.ensembles.budget_runner(ensemble, options)
            grid = Grid.of(sized.height, sized.width, tile, ensemble.margin, ensemble.multiple)
            refiner = self.ensembles.refiner_for(options)
            height, width = ensemble.scale * sized.height, ensemble.scale * sized.width
            refinements = 0 if refiner is None else count_tiles(refiner.preset, height, width)
            progress.begin(len(grid) * (len(EIGHTFOLD) if options.tta else 1), refinements)
            status.step = "computing"
            recorder = ArrayRecorder(ensemble, progress, folder, budget_runner, refined=refiner is not None)
            timed_refiner = None if refiner is None else progress.wrap_refiner(refiner)
            pipeline = Pipeline(progress.wrap(ensemble), options, tile, recorder, budget_runner, timed_refiner)
            outcome = pipeline.run([sized])
            for refusal in outcome.failed.values():
                raise refusal
            assert recorder.finished is not None
        except BaseException:  # cancelling included
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return recorder.finished


def _input_warnings(sized: Sized) -> list[str]:
    return [
        f"{sized.job.input.name} shows {TROUBLES[kind].what}, which the experts may not have been trained for: "
        f"{TROUBLES[kind].cure}."
        for kind in warn_about([sized.job.input])
    ]
