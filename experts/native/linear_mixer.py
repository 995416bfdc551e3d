"""Feature map -> feature map by linear attention (Katharopoulos et al. 2020) within large windows.

Every pixel sees a whole window at a cost that grows with its pixels, not their square; the window bounds how far it
sees, so that large images can be cut into tiles.
Legend: B batch, C channels, H and W height and width, N pixels of a window, W windows of the batch, h heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from experts.native.window_attention import HEAD_CHANNELS
from experts.native.windows import from_windows, to_windows

if TYPE_CHECKING:
    from torch import Tensor


class LinearMixer(nn.Module):
    """Positive features of queries and keys; the mean of the values, weighted by their products."""

    def __init__(self, channels: int, window: int = 16) -> None:
        super().__init__()
        self.window, self.heads = window, channels // HEAD_CHANNELS
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        x_WNC = to_windows(x_BCHW, self.window, 0)
        inside_WN1 = to_windows(torch.ones_like(x_BCHW[:, :1]), self.window, 0)
        query, key, value = (self._heads(part) for part in self.qkv(x_WNC).chunk(3, dim=-1))
        # Sums over many pixels: in float32 whatever the network runs in.
        query, key, value = F.elu(query.float()) + 1, F.elu(key.float()) + 1, value.float()
        key = key * inside_WN1[:, None].float()
        with torch.autocast(x_BCHW.device.type, enabled=False):
            summed = query @ (key.transpose(-1, -2) @ value)
            weight = query @ key.sum(dim=-2, keepdim=True).transpose(-1, -2)
        y_WNC = (summed / weight.clamp(min=1e-6)).transpose(1, 2).reshape(x_WNC.shape).to(x_WNC.dtype)
        return from_windows(self.project(y_WNC), size, self.window, 0)

    def _heads(self, x_WNC: Tensor) -> Tensor:
        """(W, N, C) -> (W, h, N, C/h)."""
        windows, pixels, _ = x_WNC.shape
        return x_WNC.reshape(windows, pixels, self.heads, HEAD_CHANNELS).transpose(1, 2)
