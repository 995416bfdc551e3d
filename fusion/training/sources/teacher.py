"""A cache of a teacher's images -> LR crops and targets: the teacher's image, mixed with the truth where there is one.

The images are kept in memory as 8-bit, as those of a folder are. Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cache_tools.read.reader import CacheReader
from fusion.training.sources.augment import refuse_for_cache
from fusion.training.sources.cache import split_sources
from fusion.training.sources.folder import FolderSource, Pair
from imaging.files import quantize_u8
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

    from fusion.training.settings import TrainSettings


class TeacherSource(FolderSource):
    """Training pairs hold the target in the place of the truth; held-out ones the truth, or the teacher's image.

    `teacher` is what the cache knows of who made the images, `truth` whether there are true ones.
    """

    def __init__(self, settings: TrainSettings, rank: int = 0, world: int = 1) -> None:
        if settings.data.cache is None:
            cure = "render the teacher's images by `python -m fusion distil`, or add --cache DIR"
            raise Refusal("no cache is named", where="data.cache", cure=cure)
        refuse_for_cache(settings.augment)
        self._reader = CacheReader(settings.data.cache, features=False)
        if len(self._reader.experts) != 1:
            what = f"holds {len(self._reader.experts)} experts, not the images of one teacher"
            raise Refusal(what, where=settings.data.cache, cure="render a teacher by `python -m fusion distil`")
        self.truth = self._reader.has_hr
        self._taught: dict[str, Tensor] = {}
        self._image_of = {entry.id: entry.source for entry in self._reader.entries}
        super().__init__(settings, rank, world)

    @property
    def teacher(self) -> dict[str, Any]:
        """The teacher's identity, as the cache records it."""
        return self._reader.recipe.experts[0].model_dump(mode="json", exclude_none=True)

    def image_of(self, item: str) -> str:
        """The source image of an item."""
        return self._image_of[item]

    def taught(self, item: str) -> Tensor:
        """A held-out item's image by the teacher: (1, 3, sH, sW), float32."""
        return self._taught[item].float()[None] / 255

    def _read(self, settings: TrainSettings) -> tuple[list[Pair], list[Pair], str]:
        train, held = split_sources(self._reader, settings)
        kept = [self._pair(item, settings.distil.truth) for item in train]
        away = [self._pair(item, 1.0) for item in held]
        self._taught = {item: quantize_u8(self._reader.read(item).sr_BECHW[:, 0])[0] for item in held}
        return kept, away, f"{self._reader.store.manifest.fingerprint}/{len(self._reader.entries)}"

    def _pair(self, item: str, share: float) -> Pair:
        """`share` of the truth, the rest of the teacher."""
        batch = self._reader.read(item)
        target_BCHW = batch.sr_BECHW[:, 0].clamp(0, 1)
        if batch.hr_BCHW is not None:
            target_BCHW = torch.lerp(target_BCHW, batch.hr_BCHW, share)
        return Pair(item, quantize_u8(batch.lr_BCHW)[0], quantize_u8(target_BCHW)[0])
