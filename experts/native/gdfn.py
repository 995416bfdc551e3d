"""Feature map -> feature map by the gated depthwise feed-forward network of Restormer (Zamir et al. 2022).

Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class GatedDepthwiseFFN(nn.Module):
    """Widen to two halves, 3x3 per channel, GELU of one half times the other, narrow."""

    def __init__(self, channels: int, ratio: float = 2.0) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.widen = nn.Conv2d(channels, 2 * hidden, 1)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.narrow = nn.Conv2d(hidden, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        gate_BCHW, value_BCHW = self.depthwise(self.widen(x_BCHW)).chunk(2, dim=1)
        return self.narrow(F.gelu(gate_BCHW) * value_BCHW)
