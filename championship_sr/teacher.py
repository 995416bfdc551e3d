"""An ensemble of infer.py -> one expert of cache_tools: its images, rendered once, are what a student learns from.

Axes: B batch, C colour, H and W of the LR image.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from cache_tools.convert.merge import merge
from cache_tools.read.reader import CacheReader
from cache_tools.write.extract import extract
from cache_tools.write.recipe import ExtractSettings
from experts.spec import ExpertIdentity, ExpertOutput
from fusion.inference.ensemble import PLAIN, Answer, Place, run_tile
from imaging.device import SideBySide
from imaging.refusal import Refusal
from imaging.scale import enlarged
from imaging.tiling import plan_kept_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from fusion.inference.ensemble import Ensemble, RunExpert

TILE = 256  # LR pixels: what four light experts and their fusion hold in a few GB


class EnsembleExpert:
    """The experts and their fusion behind the interface of one expert without features."""

    def __init__(self, ensemble: Ensemble, *, turns: Sequence[int] = PLAIN, tile: int = TILE) -> None:
        self._ensemble, self._turns = ensemble, tuple(turns)
        # No smaller than its surroundings leave room for.
        self._tile = max(tile, 4 * ensemble.margin, ensemble.multiple)
        known = json.dumps([ensemble.identity, self._turns], sort_keys=True, default=str)
        self._sha256 = hashlib.sha256(known.encode()).hexdigest()

    @property
    def name(self) -> str:
        """What the cache calls it."""
        return "teacher"

    @property
    def identity(self) -> ExpertIdentity:
        """All experts, their fusion and the turns, in one hash; the architecture names them."""
        return ExpertIdentity(
            name=self.name,
            architecture=f"ensemble of {', '.join(self._ensemble.names)}",
            tap=None,
            channels=0,
            weights_sha256=self._sha256,
            precision="fp32",
            tiling=f"{self._tile}+{self._ensemble.margin}",
            scale=self._ensemble.scale,
        )

    def run(self, lr_BCHW: Tensor, items: Sequence[str] = ()) -> ExpertOutput:
        """Image by image, in tiles where it is larger than one."""
        names = list(items) or [""] * len(lr_BCHW)
        lr_BCHW = lr_BCHW.to(self._ensemble.device)
        return ExpertOutput(
            torch.stack([self._image(one, name) for one, name in zip(lr_BCHW, names, strict=True)]), None
        )

    def _image(self, lr_CHW: Tensor, item: str) -> Tensor:
        (height, width), scale = lr_CHW.shape[-2:], self._ensemble.scale
        sr_CHW = lr_CHW.new_full((3, scale * height, scale * width), float("nan"))
        margin, multiple = self._ensemble.margin, self._ensemble.multiple
        for tile in plan_kept_tiles(height, width, self._tile, margin, multiple):
            part_BCHW = lr_CHW[(None, ..., *tile.read)]
            place = Place(item, tile.rows.start, tile.columns.start, height, width)
            fused_CHW = run_tile(self._ensemble, part_BCHW, place, turns=self._turns)[:3]
            large, cut = (tuple(enlarged(span, scale) for span in spans) for spans in (tile.keep, tile.inner))
            sr_CHW[(..., *large)] = fused_CHW[(..., *cut)]
        return sr_CHW


def with_cached_experts(ensemble: Ensemble, root: Path | str) -> Ensemble:
    """The same ensemble, whose experts' outputs are read from a cache wherever it holds the very image.

    Images that the cache does not hold, or holds with another LR image, and turned ones are run.
    """
    reader = CacheReader(root)
    known = {one.name: one.weights_sha256 for one in reader.recipe.experts}
    for name, identity in ensemble.identity["experts"].items():
        if known.get(name) != identity["weights_sha256"]:
            what = f"was made with other weights of {name!r}" if name in known else f"does not hold the expert {name!r}"
            raise Refusal(what, where=root, cure="leave --cache out, or extract one with the teacher's experts")
    items = {entry.id for entry in reader.entries}
    read = lru_cache(maxsize=1)(reader.read)  # one image's experts come one after another

    def answer(name: str, run: RunExpert) -> RunExpert:
        def read_or_run(lr_BCHW: Tensor, place: Place, turn: int) -> Answer:
            if turn or place.item not in items:
                return run(lr_BCHW, place, turn)
            batch = read(place.item)
            rows = slice(place.top, place.top + lr_BCHW.shape[-2])
            columns = slice(place.left, place.left + lr_BCHW.shape[-1])
            if not torch.equal(batch.lr_BCHW[..., rows, columns], lr_BCHW.cpu()):
                return run(lr_BCHW, place, turn)
            large = (enlarged(rows, ensemble.scale), enlarged(columns, ensemble.scale))
            sr_BCHW = batch.sr_BECHW[(slice(None), batch.experts.index(name), slice(None), *large)]
            feat_BCHW = batch.feats.get(name)
            if feat_BCHW is not None:
                feat_BCHW = feat_BCHW[..., rows, columns].to(lr_BCHW.device)
            return Answer(sr_BCHW.to(lr_BCHW.device), feat_BCHW)

        return read_or_run

    experts = {name: answer(name, run) for name, run in ensemble.experts.items()}
    return replace(ensemble, experts=experts, together=SideBySide(1))  # one item's experts come from one file


def render(teacher: EnsembleExpert, out: Path, *, hr: Sequence[Path], lr: Sequence[Path], regions: int = 0) -> Path:
    """Folders of HR or of LR images -> a cache of the profile `images`; what is there already is kept."""
    folders = [(folder, None) for folder in hr] + [(None, folder) for folder in lr]
    parts = [out] if len(folders) == 1 else [out.with_name(f"{out.name}-{index}") for index in range(len(folders))]
    for (true, small), part in zip(folders, parts, strict=True):
        settings = ExtractSettings(out=part, hr=true, lr=small, profile="images", regions=regions)
        report = extract(settings, [teacher])
        if report.failures:
            first = report.failures[0]
            what = f"{len(report.failures)} images cannot be rendered (first: {first.item}: {first.reason})"
            raise Refusal(what, where=true or small or out, cure="remove or repair them")
    if len(parts) > 1:
        merge(parts, out)
    return out
