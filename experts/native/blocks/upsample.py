"""Features at LR size -> an RGB residual at HR size, by pixel shuffle, by learned sampling, or by routed experts.

All start small, so that a network starts near plain interpolation.
Legend: B batch, C channels, H and W height and width (of LR), s scale, G groups, T tokens (B*H*W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

from experts.native.blocks.mixture import Mixture, PointwiseExpert
from imaging.layers import ChannelNorm

if TYPE_CHECKING:
    from torch import Tensor

Upsampler = Literal["pixelshuffle", "dysample", "moe"]

SMALL = 0.1  # times torch's initial weights


class PixelShuffleUp(nn.Module):
    """One 3x3 convolution to 3*s*s channels, shuffled into place."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.to_image = _small(nn.Conv2d(channels, 3 * scale**2, 3, padding=1))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, 3, sH, sW) and no balance."""
        return F.pixel_shuffle(self.to_image(x_BCHW), self.scale), None


class DySampleUp(nn.Module):
    """Few channels sampled bilinearly at learned places (DySample, Liu et al. 2023), then a 3x3 convolution."""

    groups, thin = 4, 16

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.narrow = nn.Conv2d(channels, self.thin, 3, padding=1)
        self.offset = nn.Conv2d(channels, 2 * self.groups * scale**2, 1)
        # Near-zero offsets: sampling starts as plain bilinear interpolation.
        nn.init.normal_(self.offset.weight, std=1e-3)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)
        self.to_image = _small(nn.Conv2d(self.thin, 3, 3, padding=1))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, 3, sH, sW) and no balance."""
        places = self._places(x_BCHW)
        # grid_sample in float32: half precision cannot address the pixels of a large map.
        thin_BCHW = self.narrow(x_BCHW).float()
        groups = thin_BCHW.unflatten(1, (self.groups, -1)).flatten(0, 1)
        sampled = F.grid_sample(groups, places, mode="bilinear", padding_mode="border", align_corners=False)
        return self.to_image(sampled.unflatten(0, (-1, self.groups)).flatten(1, 2)), None

    def _places(self, x_BCHW: Tensor) -> Tensor:
        """(B*G, sH, sW, 2): where each HR pixel samples, in [-1, 1] across the LR map."""
        batch, _, height, width = x_BCHW.shape
        # In LR pixels; a quarter of the layer's output, so that neighbouring samples hardly cross.
        offset = F.pixel_shuffle(0.25 * self.offset(x_BCHW).float(), self.scale)
        offset = offset.reshape(batch * self.groups, 2, height * self.scale, width * self.scale)
        rows = (torch.arange(height * self.scale, device=offset.device) + 0.5) / self.scale
        columns = (torch.arange(width * self.scale, device=offset.device) + 0.5) / self.scale
        across = (columns[None, None] + offset[:, 0]) * 2 / width - 1
        down = (rows[None, :, None] + offset[:, 1]) * 2 / height - 1
        return torch.stack([across, down], dim=-1)


class MoEUp(nn.Module):
    """Each pixel's sub-pixels by its best two of four pointwise experts, after a shared 3x3 convolution."""

    experts, top_k = 4, 2

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.gather = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = ChannelNorm(channels)
        self.router = nn.Linear(channels, self.experts)
        self.enter = nn.Linear(channels, 3 * scale**2)
        experts = (PointwiseExpert(3 * scale**2, 1.0) for _ in range(self.experts))
        self.mixture = Mixture(experts, top_k=self.top_k)
        self.to_image = _small(nn.Conv2d(3 * scale**2, 3 * scale**2, 1))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, 3, sH, sW) and the balance."""
        x_BHWC = self.norm(self.gather(x_BCHW)).permute(0, 2, 3, 1)
        entered_BHWD = self.enter(x_BHWC)
        mixed_TD, balance = self.mixture(entered_BHWD.flatten(0, 2), self.router(x_BHWC.flatten(0, 2)))
        sub_BDHW = (entered_BHWD + mixed_TD.view(entered_BHWD.shape)).permute(0, 3, 1, 2)
        return F.pixel_shuffle(self.to_image(sub_BDHW), self.scale), balance


def make_upsampler(kind: Upsampler, channels: int, scale: int) -> nn.Module:
    """The upsampler of that name."""
    kinds = {"pixelshuffle": PixelShuffleUp, "dysample": DySampleUp, "moe": MoEUp}
    if kind not in kinds:
        raise ValueError(f"unknown upsampler '{kind}'; there are {', '.join(kinds)}")
    return kinds[kind](channels, scale)


def _small(conv: nn.Conv2d) -> nn.Conv2d:
    with torch.no_grad():
        conv.weight.mul_(SMALL)
        assert conv.bias is not None
        conv.bias.zero_()
    return conv
