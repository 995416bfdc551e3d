"""Feature map -> feature map by attention within shifted windows, an optional linear mixer and a feed-forward network.

Shifted windows: Swin (Liu et al. 2021), to itself or to another map. Linear attention (Katharopoulos et al. 2020) in
large windows: every pixel attends to a whole window at a cost linear in its pixels; the window bounds the receptive
field, so that large images can be cut into tiles. The gated depthwise feed-forward network is Restormer's (Zamir et al.
2022).
Legend: B batch, C channels, H and W height and width, N pixels of a window, M windows of an image, W windows of the
batch (B*M), R some of them, h heads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from experts.native.blocks.drop_path import DropPath
from experts.native.blocks.windows import busy_windows, cut_windows, from_windows, to_windows
from imaging.layers import ChannelNorm

if TYPE_CHECKING:
    from torch import Tensor

HEAD_CHANNELS = 16  # small, for networks of 48 and 64 channels


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
        # 0.02: as Swin initialises it.
        self.position_bias = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, self.heads))

    def forward(self, x_BCHW: Tensor, context_BCHW: Tensor | None = None, busy_W: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W): x attends to the context (itself if none); flat windows get zero."""
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        x_WNC = to_windows(x_BCHW, self.window, self.shift)
        context_WNC = x_WNC if context_BCHW is None else to_windows(context_BCHW, self.window, self.shift)
        bias_hNN = self.position_bias[relative_positions(self.window).to(x_WNC.device)].permute(2, 0, 1)
        whole_R, cut_R, mask_RNN = self._sort(size, len(x_WNC), busy_W, x_WNC.device)
        # Masks for cut windows only, which lie along two edges: masks for all would grow with the image.
        if len(whole_R) == len(x_WNC):
            y_WNC = self._attend(x_WNC, context_WNC, bias_hNN[None])
        else:
            whole_RNC = self._attend(x_WNC[whole_R], context_WNC[whole_R], bias_hNN[None])
            y_WNC = torch.zeros_like(x_WNC, dtype=whole_RNC.dtype).index_copy(0, whole_R, whole_RNC)
            if len(cut_R):
                masked_RhNN = bias_hNN[None].masked_fill(~mask_RNN[:, None], float("-inf"))
                y_WNC = y_WNC.index_copy(0, cut_R, self._attend(x_WNC[cut_R], context_WNC[cut_R], masked_RhNN))
        return from_windows(y_WNC, size, self.window, self.shift)

    def _sort(
        self, size: tuple[int, int], windows: int, busy_W: Tensor | None, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The windows to run: uncut ones, cut ones, and the latter's attention masks."""
        row_M, mask_KNN = (table.to(device) for table in cut_windows(*size, self.window, self.shift))
        row_W = row_M.repeat(windows // len(row_M))
        selected_W = torch.ones_like(row_W, dtype=torch.bool) if busy_W is None else busy_W
        whole_R = (selected_W & (row_W < 0)).nonzero()[:, 0]
        cut_R = (selected_W & (row_W >= 0)).nonzero()[:, 0]
        return whole_R, cut_R, mask_KNN[row_W[cut_R]]

    def _attend(self, x_RNC: Tensor, context_RNC: Tensor, bias: Tensor) -> Tensor:
        """Windows and a bias (1 or R, h, N, N) -> (R, N, C)."""
        shape = (*x_RNC.shape[:2], self.heads, HEAD_CHANNELS)
        query = self.query(x_RNC).view(shape).transpose(1, 2)
        key, value = (part.reshape(shape).transpose(1, 2) for part in self.key_value(context_RNC).chunk(2, dim=-1))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.project(y.transpose(1, 2).reshape(x_RNC.shape))


@lru_cache(maxsize=8)
def relative_positions(window: int) -> Tensor:
    """int (N, N): the row of the bias table for each pair of positions."""
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    down, right = y[:, None] - y[None], x[:, None] - x[None]
    return (down + window - 1) * (2 * window - 1) + right + window - 1


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
        return from_windows(self.mix(x_WNC, inside_WN1), size, self.window, 0)

    def mix(self, x_WNC: Tensor, inside_WN1: Tensor) -> Tensor:
        """Windows, and 1 for each of their pixels that is not padding -> (W, N, C)."""
        query, key, value = (self._heads(part) for part in self.qkv(x_WNC).chunk(3, dim=-1))
        # Sums over many pixels: in float32 whatever the network runs in.
        query, key, value = F.elu(query.float()) + 1, F.elu(key.float()) + 1, value.float()
        # Padding must not count: elu + 1 makes a key of zeros 1, not 0.
        key = key * inside_WN1[:, None].float()
        with torch.autocast(x_WNC.device.type, enabled=False):
            summed = query @ (key.transpose(-1, -2) @ value)
            weight = query @ key.sum(dim=-2, keepdim=True).transpose(-1, -2)
        # Positive, but it can underflow where all features are near their minimum.
        y_WNC = (summed / weight.clamp(min=1e-6)).transpose(1, 2).reshape(x_WNC.shape).to(x_WNC.dtype)
        return self.project(y_WNC)

    def _heads(self, x_WNC: Tensor) -> Tensor:
        """(W, N, C) -> (W, h, N, C/h)."""
        windows, pixels, _ = x_WNC.shape
        return x_WNC.reshape(windows, pixels, self.heads, HEAD_CHANNELS).transpose(1, 2)


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


class WindowBlock(nn.Module):
    """Norm, attention, add; norm, mixer, add (where there is one); norm, gated feed-forward, add.

    `skip_flat`: windows whose grey levels deviate less than this are left out of attention (0: none).
    `recompute`: drop activations in training and compute them again for the gradients, to save memory.
    """

    def __init__(
        self,
        channels: int,
        *,
        window: int = 8,
        shifted: bool = False,
        mixer: nn.Module | None = None,
        ratio: float = 2.0,
        drop_path: float = 0.0,
        skip_flat: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.skip_flat, self.recompute = skip_flat, recompute
        self.norm1 = ChannelNorm(channels)
        self.attention = WindowAttention(channels, window=window, shifted=shifted)
        self.norm_mixer = None if mixer is None else ChannelNorm(channels)
        self.mixer = mixer
        self.norm2 = ChannelNorm(channels)
        self.ffn = GatedDepthwiseFFN(channels, ratio)
        self.drop = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor, guide_B1HW: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); the guide is the grey image at this size, for `skip_flat`."""
        busy_W = None
        if self.skip_flat and guide_B1HW is not None:
            busy_W = busy_windows(guide_B1HW, self.attention.window, self.attention.shift, self.skip_flat)
        if self.recompute and self.training and torch.is_grad_enabled():
            y_BCHW = checkpoint(self._run, x_BCHW, busy_W, use_reentrant=False)
            assert isinstance(y_BCHW, torch.Tensor)
            return y_BCHW
        return self._run(x_BCHW, busy_W)

    def _run(self, x_BCHW: Tensor, busy_W: Tensor | None) -> Tensor:
        x_BCHW = x_BCHW + self.drop(self.attention(self.norm1(x_BCHW), busy_W=busy_W))
        if self.mixer is not None and self.norm_mixer is not None:
            x_BCHW = x_BCHW + self.drop(self.mixer(self.norm_mixer(x_BCHW)))
        return x_BCHW + self.drop(self.ffn(self.norm2(x_BCHW)))
