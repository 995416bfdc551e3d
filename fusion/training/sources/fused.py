"""A cache of fused images and their truths -> crops of LR, fused and true image, each crop twice, for two seeds.

Fused and true image are kept as one of six channels, so that both are cut and turned alike.
Legend: B batch, E experts (one: the ensemble), C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion.training.sources.batch import TrainBatch
from fusion.training.sources.folder import Pair, RawPairs, as_float, whole
from fusion.training.sources.teacher import TeacherSource
from imaging.files import quantize_u8
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fusion.training.settings import TrainSettings

FUSED, SEEDS = "fused", 2
_COLOURS = 3


class FusedSource(TeacherSource):
    """Batches hold the fused image as their only expert. Samples 0 and 1, 2 and 3, ... are the same crop."""

    def __init__(self, settings: TrainSettings, rank: int = 0, world: int = 1) -> None:
        super().__init__(settings, rank, world)
        if not self.truth:
            where, cure = str(settings.data.cache), "render it from true images: `python -m fusion render --hr DIR`"
            raise Refusal("holds no true images, which a refiner learns from", where=where, cure=cure)

    def finish(self, raw: RawPairs, device: torch.device) -> TrainBatch:
        """To the device, every crop as often as there are seeds."""
        lr_BCHW, both_BCHW = (
            as_float(image, device).repeat_interleave(SEEDS, 0) for image in (raw.lr_BCHW, raw.hr_BCHW)
        )
        return _split(tuple(item for item in raw.items for _ in range(SEEDS)), lr_BCHW, both_BCHW)

    def held_out(self) -> Iterator[TrainBatch]:
        """The held-out images, whole and once."""
        for pair in self._held:
            batch = whole(pair)
            yield _split(batch.items, batch.lr_BCHW, batch.hr_BCHW)

    def _pair(self, item: str, share: float) -> Pair:  # noqa: ARG002 (nothing is mixed here)
        batch = self._reader.read(item)
        hr_BCHW = batch.sr_BECHW[:, 0] if batch.hr_BCHW is None else batch.hr_BCHW
        both_BCHW = torch.cat([batch.sr_BECHW[:, 0].clamp(0, 1), hr_BCHW], dim=1)
        return Pair(item, quantize_u8(batch.lr_BCHW)[0], quantize_u8(both_BCHW)[0])


def _split(items: tuple[str, ...], lr_BCHW: Tensor, both_BCHW: Tensor) -> TrainBatch:
    fused_BCHW, hr_BCHW = both_BCHW[:, :_COLOURS], both_BCHW[:, _COLOURS:]
    return TrainBatch(items, lr_BCHW, hr_BCHW, sr_BECHW=fused_BCHW[:, None], experts=(FUSED,))
