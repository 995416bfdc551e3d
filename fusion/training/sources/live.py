"""HR image folders and running experts -> training batches as a cache gives them, with every augmentation allowed.

Experts see each crop with `CONTEXT` LR pixels around it, which are cut off their outputs.
Legend: B batch, E experts, C channels, H and W height and width.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from fusion.training.sources.batch import TrainBatch
from fusion.training.sources.folder import FolderSource, RawPairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from fusion.network.settings import ExpertSlot
    from fusion.training.settings import TrainSettings

    # lr_BCHW -> (sr_BECHW, feats by name)
    RunExperts = Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]

CONTEXT = 8  # LR pixels on each side: keeps most of an expert's border effects outside the crop
FIT_STEPS = 16  # batches that the base is fitted on: a cache offers all its items, running experts are slow
FEATURE_STEPS = 4  # and on how many of them their features' channels are measured


class LiveSource:
    """Crops from memory; the experts run when a batch is finished, on their own device."""

    fit_border = 0  # the context is cut off already

    def __init__(
        self,
        settings: TrainSettings,
        slots: tuple[ExpertSlot, ...],
        run_experts: RunExperts,
        rank: int = 0,
        world: int = 1,
        expert_specs: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        data = settings.data.model_copy(update={"patch": settings.data.patch + 2 * CONTEXT})
        self._folder = FolderSource(settings.model_copy(update={"data": data}), rank, world)
        self._slots, self._run_experts, self._scale = slots, run_experts, settings.data.scale
        self.expert_specs: Mapping[str, dict[str, Any]] = expert_specs or {}

    @property
    def fingerprint(self) -> str:
        """The images and the experts."""
        experts = ",".join(f"{slot.name}:{slot.sha256}" for slot in self._slots)
        return f"{self._folder.fingerprint}/{experts}"

    @property
    def scale(self) -> int:
        """As the settings have it; whoever opened the experts has held theirs against it."""
        return self._scale

    @property
    def slots(self) -> tuple[ExpertSlot, ...]:
        """The experts that run."""
        return self._slots

    def raw_batches(self, steps: range, workers: int) -> Iterator[RawPairs]:
        """LR and HR crops; the experts are not run yet."""
        return self._folder.raw_batches(steps, workers)

    def finish(self, raw: RawPairs, device: torch.device) -> TrainBatch:
        """Run the experts, then cut the context off."""
        return _without_context(self._with_outputs(self._folder.finish(raw, device)))

    def fit_items(self) -> Iterator[TrainBatch]:
        """The first batches of training crops."""
        batches = self._folder.raw_batches(range(FIT_STEPS), 0)
        return (_without_context(self._with_outputs(self._folder.finish(raw, torch.device("cpu")))) for raw in batches)

    def feature_items(self) -> Iterator[TrainBatch]:
        """The first few of the same."""
        return islice(self.fit_items(), FEATURE_STEPS)

    def held_out(self) -> Iterator[TrainBatch]:
        """Whole held-out images with the experts' outputs."""
        return (self._with_outputs(batch) for batch in self._folder.held_out())

    def image_of(self, item: str) -> str:
        """Items are images here."""
        return item

    def _with_outputs(self, batch: TrainBatch) -> TrainBatch:
        sr_BECHW, feats = self._run_experts(batch.lr_BCHW)
        names = tuple(slot.name for slot in self._slots)
        return TrainBatch(batch.items, batch.lr_BCHW, batch.hr_BCHW, sr_BECHW, feats, names)


def _without_context(batch: TrainBatch) -> TrainBatch:
    """Every tensor without its outer ring: `CONTEXT` pixels at LR size, times their scale at HR size."""
    assert batch.sr_BECHW is not None
    scale = batch.hr_BCHW.shape[-1] // batch.lr_BCHW.shape[-1]
    small, large = slice(CONTEXT, -CONTEXT), slice(CONTEXT * scale, -CONTEXT * scale)
    return TrainBatch(
        items=batch.items,
        lr_BCHW=batch.lr_BCHW[..., small, small].contiguous(),
        hr_BCHW=batch.hr_BCHW[..., large, large].contiguous(),
        sr_BECHW=batch.sr_BECHW[..., large, large].contiguous(),
        feats={name: feat_BCHW[..., small, small].contiguous() for name, feat_BCHW in batch.feats.items()},
        experts=batch.experts,
    )
