"""HiT-SRF -> a copy that exporters can follow: each window's padding is gathered by positions computed in the graph."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from experts.native.hit import Block, HiTSRF

if TYPE_CHECKING:
    from torch import Tensor


class _Block(Block):
    """The map goes on to whole windows whether it needs to or not."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) -> the same size."""
        height, width = x_BHWC.shape[1:3]
        padded_BHWC = x_BHWC
        for axis, side in enumerate(self.window, start=1):
            padded_BHWC = padded_BHWC.index_select(axis, _positions(x_BHWC.shape[axis], side))
        y_BHWC = self.correlation(padded_BHWC)[:, :height, :width]
        x_BHWC = x_BHWC + self.norm1(y_BHWC)
        return x_BHWC + self.norm2(self.mlp(x_BHWC))


def _positions(length: int, side: int) -> Tensor:
    """`mirrored_positions` in tensors: what Python computes from a length is recorded as it is now."""
    place = torch.arange((length + side - 1) // side * side)
    count = torch.as_tensor(length)
    period = (2 * (count - 1)).clamp(min=1)
    swing = place % period
    return torch.where(swing < count, swing, period - swing)


def followable_hit(network: HiTSRF) -> HiTSRF:
    """A copy with the blocks above."""
    twin = copy.deepcopy(network)
    for layer in list(twin.modules()):
        if type(layer) is Block:
            layer.__class__ = _Block
    return twin
