"""A feature map (B, D, H, W) -> the same, having seen far: large-kernel attention, k = 21, decomposed.

Axes: B batch, D width, H and W of the LR image.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.parts import ChannelNorm

KERNEL = 21
DILATION = 3


class LargeKernelAttention(nn.Module):
    """Depthwise 5x5, 1x21 and 21x1 dilated by 3, pointwise 1x1; the result weighs the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        reach = KERNEL // 2 * DILATION
        self.near = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.across = nn.Conv2d(width, width, (1, KERNEL), padding=(0, reach), dilation=(1, DILATION), groups=width)
        self.along = nn.Conv2d(width, width, (KERNEL, 1), padding=(reach, 0), dilation=(DILATION, 1), groups=width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        return x_BDHW * self.mix(self.along(self.across(self.near(x_BDHW))))


class LKABlock(nn.Module):
    """Norm, LKA, add; norm, pointwise feed-forward, add."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm_attention = ChannelNorm(width)
        self.attention = LargeKernelAttention(width)
        self.norm_forward = ChannelNorm(width)
        self.widen = nn.Conv2d(width, expansion * width, 1)
        self.narrow = nn.Conv2d(expansion * width, width, 1)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        x_BDHW = x_BDHW + self.attention(self.norm_attention(x_BDHW))
        return x_BDHW + self.narrow(F.gelu(self.widen(self.norm_forward(x_BDHW))))
