"""Feature map -> a factor per channel in (0, 2), told by the channel means of the neighbourhood.

Means are taken over blocks of 8x8 pixels, not over the whole image: a patch in training, a tile and a whole image
then see the same, which a global mean would not give. Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 8


class LocalChannelGate(nn.Module):
    """Light channel attention: block means, squeeze, excite, spread smoothly; starts near 1."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        squeezed = max(4, channels // reduction)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)
        nn.init.normal_(self.excite.weight, std=0.02)
        assert self.excite.bias is not None
        nn.init.zeros_(self.excite.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> gates (B, C, H, W) in (0, 2)."""
        height, width = x_BCHW.shape[-2:]
        means_BChw = F.avg_pool2d(x_BCHW, BLOCK, ceil_mode=True, count_include_pad=False)
        gate_BChw = 2 * torch.sigmoid(self.excite(F.gelu(self.squeeze(means_BChw))))
        gate_BCHW = F.interpolate(gate_BChw.float(), scale_factor=BLOCK, mode="bilinear", align_corners=False)
        return gate_BCHW[..., :height, :width]
