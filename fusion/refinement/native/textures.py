"""What the UNet answers at LR size -> pixels: amounts, enlarged smoothly, of textures that are made at full size.

The textures are the noise as grain of four widths, alike in every direction, and small learned filters of the detail
that the fused image has above its enlarged LR image. Three convolutions draw what no sum of those gives. Pixels
predicted at LR size would repeat a pattern every four pixels, learned filters of the noise weave like a JPEG's blocks.
Axes: B batch, C channels, N grains, T filters, D guiding channels, H and W.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imaging.resize import enlarge_bicubic
from imaging.scale import SCALE

COLOURS = 3
_FILTER = 7  # pixels a side
_RINGS = (0.16, 0.24, 0.34, 0.46)  # cycles a pixel; the LR image holds 0.125
_BELL = 1.6  # pixels, its standard deviation
# Grey, and two at right angles to it and to each other.
_OPPONENT_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
REACH = 3  # LR pixels: enlarging one, seven pixels a side and three convolutions of three


class Textures(nn.Module):
    """`filters` of the detail; `hidden` channels of the convolutions that draw. `channels`: what it is to be told."""

    def __init__(self, filters: int, hidden: int) -> None:
        super().__init__()
        self.grains: Tensor  # (N, 3, H, W), computed anew, so in no file
        self.register_buffer("grains", make_grains(), persistent=False)
        self.filters = _convolution(COLOURS, filters, _FILTER)
        self.draw = nn.Sequential(
            _convolution(filters + hidden, hidden, 3),
            nn.GELU(),
            _convolution(hidden, hidden, 3),
            nn.GELU(),
            last := _convolution(hidden, COLOURS, 3),
        )
        nn.init.zeros_(last.weight)
        self.amounts = COLOURS * (len(self.grains) + filters)
        self.channels = self.amounts + hidden

    def forward(self, told_BCHW: Tensor, noise_BCHW: Tensor, detail_BCHW: Tensor) -> Tensor:
        """`told_BCHW` at LR size; noise of unit variance and detail at full size -> (B, 3, 4H, 4W)."""
        told_BCHW = F.interpolate(told_BCHW, scale_factor=SCALE, mode="bilinear", align_corners=False)
        amounts_BCHW, guide_BDHW = told_BCHW.tensor_split([self.amounts], dim=1)
        noise_BCHW = F.pad(noise_BCHW, (_FILTER // 2,) * 4, mode="replicate")
        grains_BNHW = F.conv2d(noise_BCHW, self.grains.to(noise_BCHW))
        details_BTHW = self.filters(detail_BCHW)
        drawn_BCHW = self.draw(torch.cat([details_BTHW, guide_BDHW], dim=1))
        return drawn_BCHW + _mixed(amounts_BCHW, torch.cat([grains_BNHW, details_BTHW], dim=1))


def detail_of(fused_BCHW: Tensor, lr_BCHW: Tensor) -> Tensor:
    """What the fused image has above its LR image, enlarged."""
    return fused_BCHW - enlarge_bicubic(lr_BCHW)


def make_grains() -> Tensor:
    """(N, colours, H, W), of mean 0 and norm 1 each: rings of four frequencies, in grey and in two colours."""
    place_N = torch.arange(_FILTER).float() - _FILTER // 2
    radius_HW = torch.hypot(*torch.meshgrid(place_N, place_N, indexing="ij"))
    bell_HW = torch.exp(-radius_HW.square() / (2 * _BELL**2))
    grains: list[Tensor] = []
    for frequency in _RINGS:
        ring_HW = bell_HW * torch.cos(2 * math.pi * frequency * radius_HW)
        ring_HW = ring_HW - bell_HW * ring_HW.sum() / bell_HW.sum()
        grains += [torch.tensor(colour)[:, None, None] * ring_HW for colour in _OPPONENT_COLOURS]
    return torch.stack([grain / grain.norm() for grain in grains])


def _mixed(amounts_BCHW: Tensor, textures_BTHW: Tensor) -> Tensor:
    """Each colour has amounts of its own: of them and the textures, the sum of products."""
    return (amounts_BCHW.unflatten(1, (COLOURS, -1)) * textures_BTHW[:, None]).sum(2)


def _convolution(channels: int, out: int, side: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, side, padding=side // 2, padding_mode="replicate", bias=False)
