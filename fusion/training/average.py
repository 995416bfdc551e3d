"""A network being trained -> its exponential moving average, which is what is validated and shipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from torch import Tensor, nn


def decay_at(updates: int, decay: float) -> float:
    """Short memory at first, so that the untrained weights are forgotten within tens of steps and not thousands."""
    return min(decay, (1 + updates) / (10 + updates))


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network that follows it; its first update is a plain copy. Decay 0 always copies."""

    @torch.no_grad()
    def follow(average: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        share = 1 - decay_at(int(updates), decay)
        torch._foreach_lerp_(average, current, share)  # pyright: ignore[reportPrivateImportUsage] (as torch.optim does)

    average = AveragedModel(network, multi_avg_fn=follow)  # pyright: ignore[reportArgumentType] (tuples or lists)
    average.requires_grad_(False)
    average.eval()
    return average
