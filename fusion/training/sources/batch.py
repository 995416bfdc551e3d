"""A training batch, and the interface of the sources that give it.

Legend: B batch, E experts, C channels, H and W height and width (of LR for lr and feats, of HR for hr and sr).
All images float32, nominally in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import Tensor

    from fusion.network.settings import ExpertSlot


@dataclass(frozen=True)
class TrainBatch:
    """Aligned crops; `sr_BECHW` and `feats` are there for fusion only."""

    items: tuple[str, ...]
    lr_BCHW: Tensor
    hr_BCHW: Tensor
    sr_BECHW: Tensor | None = None
    feats: Mapping[str, Tensor] = field(default_factory=dict)
    experts: tuple[str, ...] = ()

    def part(self, index: int, parts: int) -> TrainBatch:
        """The index-th of `parts` equal slices along the batch, for gradient accumulation."""
        size = len(self.items) // parts
        cut = slice(index * size, (index + 1) * size)
        return TrainBatch(
            items=self.items[cut],
            lr_BCHW=self.lr_BCHW[cut],
            hr_BCHW=self.hr_BCHW[cut],
            sr_BECHW=None if self.sr_BECHW is None else self.sr_BECHW[cut],
            feats={name: feat_BCHW[cut] for name, feat_BCHW in self.feats.items()},
            experts=self.experts,
        )


class Source(Protocol):
    """Where this process's batches come from: a folder of images, a cache, or experts that run as we train."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the training data would."""
        ...

    def raw_batches(self, steps: range, workers: int) -> Iterator[Any]:
        """This process's batch of every step of the range, in whatever form is cheap to hand over."""
        ...

    def finish(self, raw: Any, device: torch.device) -> TrainBatch:
        """A raw batch, moved to the training device and made float there."""
        ...


class FusionSource(Source, Protocol):
    """A source whose batches come with the experts' images and features.

    `fit_border`: HR pixels on each side of the fit items where the experts may have lacked context.
    """

    fit_border: int

    @property
    def scale(self) -> int:
        """By how much the experts enlarge."""
        ...

    @property
    def slots(self) -> tuple[ExpertSlot, ...]:
        """The experts in the order of the batches."""
        ...

    @property
    def expert_specs(self) -> Mapping[str, dict[str, Any]]:
        """By name, how the experts' room opens each network again, as plain values."""
        ...

    def fit_items(self) -> Iterator[TrainBatch]:
        """Training images, one at a time, for the base's fit."""
        ...

    def feature_items(self) -> Iterator[TrainBatch]:
        """Some training items with features: enough to measure their channels."""
        ...

    def held_out(self) -> Iterator[TrainBatch]:
        """Whole held-out images, one at a time, never trained on."""
        ...

    def image_of(self, item: str) -> str:
        """The image that an item is, or is a region of."""
        ...
