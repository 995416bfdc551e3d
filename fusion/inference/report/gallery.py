"""Finished layers of each image, band by band -> the report images: reduced pictures, maps and figures.

Axes: K layers, E experts, C colour, H and W at four times LR size; h and w reduced.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from fusion.inference.ensemble import layer_names
from fusion.inference.report.page import ReportImage, render
from fusion.inference.report.provenance import read_record
from fusion.inference.source import read_source
from imaging.atomic import write_text
from imaging.files import image_size, list_images, quantize_u8, read_rgb
from imaging.metrics import psnr, ssim
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from fusion.budget.run import BudgetRunner
    from fusion.inference.ensemble import Ensemble
    from fusion.inference.jobs import ImageJob, RunResult
    from fusion.inference.source import Source

log = logging.getLogger(__name__)

LONGEST = 1200  # pixels a side of the pictures in the report
FUSED, REFINED = "fused", "refined"


class Gallery:
    """Collects the pages of a run."""

    def __init__(self, ensemble: Ensemble, hr: Path | None, runner: BudgetRunner | None = None) -> None:
        self._ensemble = ensemble
        self._experts = list(ensemble.names) if runner is None else [runner.cheapest]
        self._layers = layer_names(ensemble) if runner is None else runner.layer_names(ensemble)
        self._truth = {} if hr is None else {_stem(path, ensemble.scale): path for path in list_images(hr)}
        self._hr = hr
        self.scale = ensemble.scale
        self.images: list[ReportImage] = []

    def start(self, job: ImageJob, source: Source, manifest: dict[str, Any]) -> Page:
        """A page for one image; a missing true image fails before the work."""
        truth = self._partner(job, source)
        return Page(self, job.item, source, manifest, truth, self._experts, self._layers)

    def _partner(self, job: ImageJob, source: Source) -> Path | None:
        if self._hr is None:
            return None
        truth = self._truth.get(_stem(job.input, self.scale))
        if truth is None:
            raise Refusal(f"has no partner in {self._hr}", where=job.input, cure="complete --hr, or leave it out")
        found, made = image_size(truth), (self.scale * source.height, self.scale * source.width)
        if found != made:
            what = f"is {found[1]}x{found[0]}, the output {made[1]}x{made[0]}"
            raise Refusal(what, where=truth, cure="give the true image of this input")
        return truth

    def add_skipped(self, jobs: Sequence[ImageJob], result: RunResult) -> None:
        """Pages of the images that an earlier run made: what is in the file, and in the record beside it."""
        skipped = set(result.skipped)
        for job in jobs:
            if job.output in skipped:
                try:
                    self.add(self._of_file(job))
                except Refusal as refusal:
                    log.error("%s", refusal)
                    result.failed[job.input] = refusal

    def _of_file(self, job: ImageJob) -> ReportImage:
        source, record = read_source(job.input), read_record(job.output)
        assert record is not None  # without one it would not have been skipped
        truth, image_BCHW = self._partner(job, source), read_rgb(job.output)
        name = REFINED if "refine" in record["claim"] else FUSED
        page = Page(self, job.item, source, record["claim"], truth, [], [])
        picture_HWC = _picture(F.avg_pool2d(image_BCHW, page.factor, ceil_mode=True)[0])
        scores = dict[str, tuple[float, float]]()
        is_resized = "size" in record  # written at another size than the truth's: the enlargement itself is gone
        if truth is not None and not is_resized:
            truth_BCHW = read_rgb(truth)
            scores[name] = (float(psnr(image_BCHW, truth_BCHW)), float(ssim(image_BCHW, truth_BCHW)))
        seen = {key: value for key, value in record.items() if key not in ("claim", "output_sha256")}
        return ReportImage(
            item=job.item,
            size=(image_BCHW.shape[-2], image_BCHW.shape[-1]),
            before_HWC=page.enlarged_input(*picture_HWC.shape[:2]),
            pictures={name: picture_HWC},
            maps={},
            scores=scores,
            seen=seen,
            manifest=record["claim"],
            plan=None,
            guard=record.get("refined"),
            earlier=True,
        )

    def add(self, image: ReportImage) -> None:
        """Take a finished page."""
        self.images.append(image)


def write_report(
    path: Path, images: Sequence[ReportImage], result: RunResult, tile: int, device: str, identity: Mapping[str, Any]
) -> Path:
    """Finished pages of one run, wherever they were made -> the one HTML file."""
    run = result.document() | {"tile": tile, "device": device} | dict(identity)
    # Those of an earlier run come last here, and stand where they belong.
    write_text(path, render(sorted(images, key=lambda one: PurePosixPath(one.item).parts), run))
    return path


@dataclass
class Page:
    """The layers of one image as they come. Full size is only kept of what is scored against a true image."""

    gallery: Gallery
    item: str
    source: Source
    manifest: dict[str, Any]
    truth: Path | None
    experts: list[str]
    layers: list[str]
    _rest: Tensor | None = None
    _reduced: list[Tensor] = field(default_factory=list)
    _full: list[Tensor] = field(default_factory=list)
    _refined: tuple[Tensor, dict[str, float]] | None = None

    @property
    def factor(self) -> int:
        """Pixels of the output to one of the report."""
        return max(1, -(-self.gallery.scale * max(self.source.height, self.source.width) // LONGEST))

    def add(self, band_KHW: Tensor) -> None:
        """The next rows, the image's three layers first."""
        images_KHW = band_KHW[: 3 + 3 * len(self.experts)]
        if self.truth is not None:
            self._full.append(quantize_u8(images_KHW))
        # Disagreement is measured at full size: the mean of many pixels would agree far better than each of them.
        experts_ECHW = images_KHW[3:].unflatten(0, (-1, 3))
        spread_1HW = experts_ECHW.std(dim=0, unbiased=False).mean(0, keepdim=True)
        rows_KHW = torch.cat([band_KHW, spread_1HW])
        rows_KHW = rows_KHW if self._rest is None else torch.cat([self._rest, rows_KHW], dim=-2)
        whole = rows_KHW.shape[-2] // self.factor * self.factor
        self._rest = rows_KHW[:, whole:]
        if whole:
            self._reduced.append(F.avg_pool2d(rows_KHW[None, :, :whole], self.factor, ceil_mode=True)[0])

    def add_refined(self, image_CHW: Tensor, guard: dict[str, float]) -> None:
        """The whole refined image, float and not clamped, and what the guard measured."""
        self._refined = image_CHW, guard

    def finish(self, seen: dict[str, Any], plan: dict[str, Any] | None) -> None:
        """Everything has come: make the pictures."""
        if self._rest is not None and self._rest.shape[-2]:
            rest = F.avg_pool2d(self._rest[None], (self._rest.shape[-2], self.factor), ceil_mode=True)[0]
            self._reduced.append(rest)
        layers_Khw = torch.cat(self._reduced, dim=-2)
        count = 3 + 3 * len(self.experts)
        names = [FUSED, *self.experts]
        pictures = {name: _picture(layers_Khw[3 * i : 3 * i + 3]) for i, name in enumerate(names)}
        maps = {name: layers_Khw[count + i].numpy() for i, name in enumerate(self.layers[3 * len(self.experts) :])}
        if len(self.experts) > 1:
            maps["disagreement"] = layers_Khw[-1].numpy()
        elif plan is None:  # a single expert: its gate is 1 everywhere
            maps = {name: values for name, values in maps.items() if not name.startswith("gate/")}
        size = (self.gallery.scale * self.source.height, self.gallery.scale * self.source.width)
        before_HWC, scores = self.enlarged_input(*layers_Khw.shape[-2:]), self._scores(names)
        guard = None
        if self._refined is not None:
            refined_CHW, guard = self._refined
            pictures[REFINED] = _picture(F.avg_pool2d(refined_CHW[None], self.factor, ceil_mode=True)[0])
        self.gallery.add(
            ReportImage(self.item, size, before_HWC, pictures, maps, scores, seen, self.manifest, plan, guard)
        )

    def enlarged_input(self, height: int, width: int) -> np.ndarray:
        """The input, enlarged by bicubic interpolation (or shrunk, where the report is smaller)."""
        levels_HWC = self.source.levels_HWC
        how = cv2.INTER_CUBIC if height >= self.source.height else cv2.INTER_AREA
        large = cv2.resize(levels_HWC, (width, height), interpolation=how).reshape(height, width, -1)
        # 65535 = 257 * 255: of 16-bit levels the nearest 8-bit ones.
        large = large if large.dtype == np.uint8 else (large / 257).round().astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(large, (height, width, 3)))

    def _scores(self, names: list[str]) -> dict[str, tuple[float, float]]:
        """Y-PSNR and Y-SSIM of the fused image, each expert and the refined image."""
        if self.truth is None:
            return {}
        truth_BCHW = read_rgb(self.truth)
        full_KHW = torch.cat(self._full, dim=-2)
        images = {name: full_KHW[3 * i : 3 * i + 3][None].float() / 255 for i, name in enumerate(names)}
        if self._refined is not None:
            images[REFINED] = self._refined[0][None]  # the measures round it themselves
        return {name: (float(psnr(one, truth_BCHW)), float(ssim(one, truth_BCHW))) for name, one in images.items()}


def _picture(rgb_Chw: Tensor) -> np.ndarray:
    return quantize_u8(rgb_Chw).permute(1, 2, 0).numpy()


def _stem(path: Path, scale: int) -> str:
    """`baby.png`, `babyx4.png` -> `baby`."""
    return path.stem.removesuffix(f"x{scale}")
