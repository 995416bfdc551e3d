"""Layers and conversions that experts and fusion share.

Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions become float32; float64 stays, for exact checks."""
    return x if x.dtype == torch.float64 else x.float()


class ChannelNorm(nn.Module):
    """Layer normalisation over channels; looks at one pixel only, so tiles and whole images agree.

    `eps` and `in_float32` are part of what trained weights mean: changing either changes every output of their network.
    """

    def __init__(self, channels: int, *, eps: float = 1e-6, in_float32: bool = False) -> None:
        super().__init__()
        self.eps, self.in_float32 = eps, in_float32
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, each pixel's channels at mean 0 and variance 1, then scaled and shifted."""
        x_BHWC = (at_least_float32(x_BCHW) if self.in_float32 else x_BCHW).permute(0, 2, 3, 1)
        return F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)
