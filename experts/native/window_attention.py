"""Feature map -> feature map by attention within shifted windows (Swin, Liu et al. 2021), to itself or to another map.

Legend: B batch, C channels, H and W height and width, N pixels of a window, M windows of an image, W windows of the
batch (B*M), R some of them, h heads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from experts.native.windows import cut_windows, from_windows, to_windows

if TYPE_CHECKING:
    from torch import Tensor

HEAD_CHANNELS = 16


class WindowAttention(nn.Module):
    """Multi-head attention with a learned bias per relative position; heads have 16 channels each."""

    def __init__(self, channels: int, *, window: int = 8, shifted: bool = False) -> None:
        super().__init__()
        if channels % HEAD_CHANNELS:
            raise ValueError(f"attention needs a multiple of {HEAD_CHANNELS} channels, not {channels}")
        self.window, self.shift = window, window // 2 if shifted else 0
        self.heads = channels // HEAD_CHANNELS
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)
        self.position_bias = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, self.heads))

    def forward(self, x_BCHW: Tensor, context_BCHW: Tensor | None = None, busy_W: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W): x asks, the context (x itself if none) answers; flat windows get zero."""
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        x_WNC = to_windows(x_BCHW, self.window, self.shift)
        context_WNC = x_WNC if context_BCHW is None else to_windows(context_BCHW, self.window, self.shift)
        bias_hNN = self.position_bias[_relative_positions(self.window).to(x_WNC.device)].permute(2, 0, 1)
        whole_R, cut_R, seen_RNN = self._sort(size, len(x_WNC), busy_W, x_WNC.device)
        if len(whole_R) == len(x_WNC):
            y_WNC = self._attend(x_WNC, context_WNC, bias_hNN[None])
        else:
            whole_RNC = self._attend(x_WNC[whole_R], context_WNC[whole_R], bias_hNN[None])
            y_WNC = torch.zeros_like(x_WNC, dtype=whole_RNC.dtype).index_copy(0, whole_R, whole_RNC)
            if len(cut_R):
                masked_RhNN = bias_hNN[None].masked_fill(~seen_RNN[:, None], float("-inf"))
                y_WNC = y_WNC.index_copy(0, cut_R, self._attend(x_WNC[cut_R], context_WNC[cut_R], masked_RhNN))
        return from_windows(y_WNC, size, self.window, self.shift)

    def _sort(
        self, size: tuple[int, int], windows: int, busy_W: Tensor | None, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The windows to run: those in which all see all, those that are cut, and what sees what in the latter."""
        row_M, seen_KNN = (table.to(device) for table in cut_windows(*size, self.window, self.shift))
        row_W = row_M.repeat(windows // len(row_M))
        wanted_W = torch.ones_like(row_W, dtype=torch.bool) if busy_W is None else busy_W
        whole_R = (wanted_W & (row_W < 0)).nonzero()[:, 0]
        cut_R = (wanted_W & (row_W >= 0)).nonzero()[:, 0]
        return whole_R, cut_R, seen_KNN[row_W[cut_R]]

    def _attend(self, x_RNC: Tensor, context_RNC: Tensor, bias: Tensor) -> Tensor:
        """Windows and a bias (1 or R, h, N, N) -> (R, N, C)."""
        shape = (*x_RNC.shape[:2], self.heads, HEAD_CHANNELS)
        query = self.query(x_RNC).view(shape).transpose(1, 2)
        key, value = (part.reshape(shape).transpose(1, 2) for part in self.key_value(context_RNC).chunk(2, dim=-1))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.project(y.transpose(1, 2).reshape(x_RNC.shape))


@lru_cache(maxsize=8)
def _relative_positions(window: int) -> Tensor:
    """int (N, N): the row of the bias table for each pair of positions."""
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    down, right = y[:, None] - y[None], x[:, None] - x[None]
    return (down + window - 1) * (2 * window - 1) + right + window - 1
