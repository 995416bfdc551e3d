"""Feature map -> feature map by convolutions that gate each other (NAFNet, Chen et al. 2022), with or without a
large kernel.

Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torchvision.ops import StochasticDepth

from experts.native.channel_gate import LocalChannelGate
from experts.native.large_kernel import PartialLargeKernel
from experts.native.norm import ChannelNorm

if TYPE_CHECKING:
    from torch import Tensor


class GatedConv(nn.Module):
    """Widen, 3x3 per channel, multiply one half by the other, narrow; `spatial=False` leaves the 3x3 out."""

    def __init__(self, channels: int, *, spatial: bool = True) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels) if spatial else None
        self.narrow = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        wide_BCHW = self.widen(x_BCHW)
        if self.depthwise is not None:
            wide_BCHW = self.depthwise(wide_BCHW)
        value_BCHW, gate_BCHW = wide_BCHW.chunk(2, dim=1)
        return self.narrow(value_BCHW * gate_BCHW)


class ConvGatedBlock(nn.Module):
    """A spatial and a pointwise gated convolution, each normalised before and added to its input.

    `kernel` > 0 puts a partial large kernel before the spatial one (the PLK-NAF block); `channel_gate` scales the
    spatial branch per channel.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel: int = 0,
        part: int = 16,
        channel_gate: bool = False,
        drop_path: float = 0.0,
        deployed: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.large = PartialLargeKernel(channels, part=part, kernel=kernel, deployed=deployed) if kernel else None
        self.spatial = GatedConv(channels)
        self.gate = LocalChannelGate(channels) if channel_gate else None
        self.norm2 = ChannelNorm(channels)
        self.pointwise = GatedConv(channels, spatial=False)
        self.drop = StochasticDepth(drop_path, "row")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x_BCHW = x_BCHW + self.drop(self._mix(self.norm1(x_BCHW)))
        return x_BCHW + self.drop(self.pointwise(self.norm2(x_BCHW)))

    def _mix(self, x_BCHW: Tensor) -> Tensor:
        if self.large is not None:
            x_BCHW = self.large(x_BCHW)
        y_BCHW = self.spatial(x_BCHW)
        return y_BCHW if self.gate is None else y_BCHW * self.gate(y_BCHW)
