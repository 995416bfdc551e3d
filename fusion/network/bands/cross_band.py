"""Phase 3. Nine bands (B, 9, 3, H, W) -> one routing map (B, D, H, W): attention across the bands, gates, LKA.

Axes: B batch, K = 9 bands, C = 3 colours, D width, H and W of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusion.network.attention import LKABlock, TokenAttention
from fusion.network.bands.bands import BANDS

if TYPE_CHECKING:
    from fusion.network.settings import CrossBandSettings


class CrossBandAttention(nn.Module):
    """Each band attends to the others at its pixel, softmax gates scale the changes, a 1x1 merges all nine."""

    def __init__(self, settings: CrossBandSettings) -> None:
        super().__init__()
        width = settings.width
        self.project = nn.Conv2d(BANDS * 3, BANDS * width, 1, groups=BANDS)
        self.attention = TokenAttention(width, settings.inner, settings.heads)
        self.gates_K = nn.Parameter(torch.zeros(BANDS))
        self.merge = nn.Conv2d(BANDS * width, width, 1)
        self.lka = LKABlock(width, settings.expansion)

    def forward(self, bands_BKCHW: Tensor) -> Tensor:
        """(B, 9, 3, H, W) -> (B, D, H, W)."""
        tokens_BKDHW = self.project(bands_BKCHW.flatten(1, 2)).unflatten(1, (BANDS, -1))
        gates_K111 = BANDS * self.gates_K.softmax(dim=0)[:, None, None, None]
        tokens_BKDHW = tokens_BKDHW + gates_K111 * self.attention(tokens_BKDHW)
        return self.lka(self.merge(tokens_BKDHW.flatten(1, 2)))
