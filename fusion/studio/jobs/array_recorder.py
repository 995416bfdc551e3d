"""Finished layers of each image, band by band -> arrays on disk from which the page is served, at full size.

Axes: K layers, E experts, N pictures, M maps, C colour, H and W at the experts' scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.studio.jobs.result_view import (
    BICUBIC,
    DIFFICULTY,
    DISAGREEMENT,
    FUSED,
    GATE,
    PHASE,
    REFINED,
    ResultView,
    value_range_of,
)
from imaging.files import quantize_u8
from imaging.resize import resize_bicubic

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from fusion.budget.run import BudgetRunner
    from fusion.inference.ensemble import Ensemble
    from fusion.inference.jobs import ImageJob
    from fusion.inference.source import Source
    from fusion.studio.jobs.progress import EnsembleProgress


class ArrayRecorder:
    """The pipeline's collector: starts a recording for each image and keeps the finished one."""

    def __init__(
        self,
        ensemble: Ensemble,
        progress: EnsembleProgress,
        folder: Path,
        budget_runner: BudgetRunner | None = None,
        *,
        refined: bool = False,
    ) -> None:
        self.ensemble, self.progress, self.folder, self.refined = ensemble, progress, folder, refined
        # Under a budget only the cheapest expert runs on every tile, so only its image is complete.
        self.pictured = ensemble.names if budget_runner is None else (budget_runner.cheapest,)
        self.finished: ResultView | None = None

    def start(self, job: ImageJob, source: Source, manifest: dict[str, Any]) -> RecordedImage:
        """A recording of one image."""
        return RecordedImage(self, job, source, manifest)


class RecordedImage:
    """One image's layers on their way to the disk."""

    def __init__(self, recorder: ArrayRecorder, job: ImageJob, source: Source, manifest: dict[str, Any]) -> None:
        self._recorder, self._job, self._source, self._manifest = recorder, job, source, manifest
        self._size = (recorder.ensemble.scale * source.height, recorder.ensemble.scale * source.width)
        self._row = 0  # the first that has not come yet
        names = ((REFINED,) if recorder.refined else ()) + (FUSED, *recorder.pictured, BICUBIC)
        self._names = {name: index for index, name in enumerate(names)}
        self._pictures_NHWC = self._array("pictures.npy", (len(names), *self._size, 3), np.dtype(np.uint8))
        self._maps_MHW: np.ndarray | None = None
        self._guard: dict[str, float] = {}

    def add(self, band_KHW: Tensor) -> None:
        """The next rows, the image's three layers first."""
        colours = 3 + 3 * len(self._recorder.pictured)  # layers of the fused picture and of the experts'
        maps_KHW = band_KHW[colours:].numpy()
        if self._maps_MHW is None:  # here, as the first band tells how many phases there are
            # Half precision: maps are looked at and read to three digits. The last one is our own disagreement.
            self._maps_MHW = self._array("maps.npy", (len(maps_KHW) + 1, *self._size), np.dtype(np.float16))
        rows = slice(self._row, self._row + band_KHW.shape[-2])
        levels_NHWC = quantize_u8(band_KHW[:colours]).unflatten(0, (-1, 3)).permute(0, 2, 3, 1)
        first = self._names[FUSED]
        self._pictures_NHWC[first : first + len(levels_NHWC), rows] = levels_NHWC.numpy()
        self._maps_MHW[:-1, rows] = maps_KHW
        experts_ECHW = band_KHW[3:colours].unflatten(0, (-1, 3))
        self._maps_MHW[-1, rows] = experts_ECHW.std(dim=0, unbiased=False).mean(0).numpy()
        self._row = rows.stop

    def add_refined(self, image_CHW: Tensor, guard: dict[str, float]) -> None:
        """The whole refined image, float and not clamped, and what the guard measured."""
        self._pictures_NHWC[self._names[REFINED]] = quantize_u8(image_CHW[None])[0].permute(1, 2, 0).numpy()
        self._guard = guard

    def finish(self, seen: dict[str, Any], plan: dict[str, Any] | None) -> None:
        """After the last rows: bicubic, and which maps are worth showing."""
        assert self._maps_MHW is not None
        lr_BCHW = self._source.window(0, self._source.height, 0, self._source.width)
        bicubic_BCHW = resize_bicubic(lr_BCHW, scale=self._recorder.ensemble.scale)
        self._pictures_NHWC[-1] = quantize_u8(bicubic_BCHW)[0].permute(1, 2, 0).numpy()
        names = self._map_names()
        assert len(names) == len(self._maps_MHW)
        keep = set(names) if len(self._recorder.ensemble.names) > 1 else {DIFFICULTY}  # one expert: its gate is 1
        if len(self._recorder.pictured) < 2:
            keep.discard(DISAGREEMENT)
        kept = {name: index for index, name in enumerate(names) if name in keep}
        self._recorder.finished = ResultView(
            folder=self._recorder.folder,
            output=self._job.output,
            source=self._job.input.name,
            experts=self._recorder.ensemble.names,
            pictures_NHWC=self._pictures_NHWC,
            picture_names=tuple(self._names),
            maps_MHW=self._maps_MHW,
            map_names=tuple(kept.items()),
            value_ranges={name: value_range_of(self._maps_MHW[index]) for name, index in kept.items()},
            seconds={name: stage.seconds for name, stage in self._recorder.progress.stages.items()},
            manifest=self._manifest,
            seen=seen,
            plan=plan,
            guard=self._guard,
            scale=self._recorder.ensemble.scale,
        )

    def _map_names(self) -> list[str]:
        """In the order of the layers: gates, what each phase added, difficulty, and our own disagreement."""
        gates = [f"{GATE}/{name}" for name in self._recorder.ensemble.names]
        phases = [f"{PHASE}/{name}" for name in self._recorder.progress.phases]
        return gates + phases + [DIFFICULTY] * self._recorder.ensemble.has_difficulty + [DISAGREEMENT]

    def _array(self, name: str, shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
        # On disk, and mapped: results are many times larger than their images, and the page reads a few at a time.
        return np.lib.format.open_memmap(self._recorder.folder / name, mode="w+", dtype=kind, shape=shape)
