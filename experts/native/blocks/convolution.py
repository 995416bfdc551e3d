"""Feature map -> feature map by convolutions that gate each other (NAFNet, Chen et al. 2022), also with large kernels.

The large kernel is applied to the first channels only (PLKSR, Lee et al. 2024). Channel gates take means over blocks of
8x8 pixels, not over the whole image: a patch in training, a tile and a whole image then see the same.
Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from experts.native.blocks.drop_path import DropPath
from experts.native.blocks.multi_branch import MultiBranchConv
from imaging.layers import ChannelNorm

if TYPE_CHECKING:
    from torch import Tensor


class PartialLargeKernel(nn.Module):
    """A dense large kernel over `part` channels; the others pass unchanged, so that a large field stays cheap."""

    def __init__(self, channels: int, *, part: int = 16, kernel: int = 13, deployed: bool = False) -> None:
        super().__init__()
        if part > channels:
            raise ValueError(f"a large kernel over {part} of {channels} channels")
        self.part = part
        self.conv = MultiBranchConv(part, kernel, deployed=deployed)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.part == x_BCHW.shape[1]:
            return self.conv(x_BCHW)
        part_BCHW, passed_BCHW = x_BCHW[:, : self.part], x_BCHW[:, self.part :]
        return torch.cat([self.conv(part_BCHW), passed_BCHW], dim=1)


BLOCK = 8  # pixels: divides every preset's padding, so that blocks fall alike in tiles and whole images


class LocalChannelGate(nn.Module):
    """Light channel attention: block means, squeeze, excite, spread smoothly; starts near 1."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        squeezed = max(4, channels // reduction)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)
        # Near zero, twice the sigmoid is near 1: an untrained gate lets its channels pass.
        nn.init.normal_(self.excite.weight, std=0.02)
        assert self.excite.bias is not None
        nn.init.zeros_(self.excite.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> gates (B, C, H, W) in (0, 2)."""
        height, width = x_BCHW.shape[-2:]
        means_BChw = F.avg_pool2d(x_BCHW, BLOCK, ceil_mode=True, count_include_pad=False)
        gate_BChw = 2 * torch.sigmoid(self.excite(F.gelu(self.squeeze(means_BChw))))
        # Bilinear, not by blocks: constant gates would leave edges at every block.
        gate_BCHW = F.interpolate(gate_BChw.float(), scale_factor=BLOCK, mode="bilinear", align_corners=False)
        return gate_BCHW[..., :height, :width]


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
        self.drop = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x_BCHW = x_BCHW + self.drop(self._mix(self.norm1(x_BCHW)))
        return x_BCHW + self.drop(self.pointwise(self.norm2(x_BCHW)))

    def _mix(self, x_BCHW: Tensor) -> Tensor:
        if self.large is not None:
            x_BCHW = self.large(x_BCHW)
        y_BCHW = self.spatial(x_BCHW)
        return y_BCHW if self.gate is None else y_BCHW * self.gate(y_BCHW)
