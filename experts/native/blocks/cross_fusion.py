"""Low- and high-frequency features -> the same, each with a gated part of the other added.

Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from experts.native.blocks.convolution import GatedConv, LocalChannelGate
from experts.native.blocks.window_attention import WindowAttention
from imaging.layers import ChannelNorm

if TYPE_CHECKING:
    from torch import Tensor


class _GatedContribution(nn.Module):
    """One path's contribution to the other: 1x1, times a sigmoid gate per pixel, times a gate per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(2 * channels, channels, 1)
        self.channel_gate = LocalChannelGate(channels)

    def forward(self, source_BCHW: Tensor, both_BCHW: Tensor) -> Tensor:
        value_BCHW = self.value(source_BCHW) * torch.sigmoid(self.gate(both_BCHW))
        return value_BCHW * self.channel_gate(value_BCHW)


class CrossFrequencyFusion(nn.Module):
    """LF' = LF + g(HF -> LF), HF' = HF + g(LF -> HF)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_low = _GatedContribution(channels)
        self.to_high = _GatedContribution(channels)

    def forward(self, low_BCHW: Tensor, high_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps (B, C, H, W) -> two maps (B, C, H, W)."""
        both_BCHW = torch.cat([low_BCHW, high_BCHW], dim=1)
        return low_BCHW + self.to_low(high_BCHW, both_BCHW), high_BCHW + self.to_high(low_BCHW, both_BCHW)


class CrossAttentionFusion(nn.Module):
    """Both paths -> one map: the low attends to the high within windows, then a gated convolution over both."""

    def __init__(self, channels: int, *, window: int = 8) -> None:
        super().__init__()
        self.norm_low, self.norm_high = ChannelNorm(channels), ChannelNorm(channels)
        self.attention = WindowAttention(channels, window=window)
        self.join = nn.Conv2d(2 * channels, channels, 1)
        self.norm = ChannelNorm(channels)
        self.refine = GatedConv(channels)

    def forward(self, low_BCHW: Tensor, high_BCHW: Tensor) -> Tensor:
        """Two maps (B, C, H, W) -> one (B, C, H, W)."""
        low_BCHW = low_BCHW + self.attention(self.norm_low(low_BCHW), self.norm_high(high_BCHW))
        joined_BCHW = self.join(torch.cat([low_BCHW, high_BCHW], dim=1))
        return joined_BCHW + self.refine(self.norm(joined_BCHW))
