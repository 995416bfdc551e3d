"""HiT-SRF's correlation: a map -> the same map, each pixel correlated with the cells of its window.

There is no softmax, so the product of query, value and value is taken from the right: (d, d) instead of (pixels,
cells) numbers for each head. What the position of pixel and cell adds does not depend on the image: it is computed
once. Computed in every forward, as published, it takes most of the time.

Legend: B batch, C channels, H and W height and width of the low-resolution image; G windows, P pixels of a window,
K cells of a window, h heads, d channels of a head. Maps are held as (B, H, W, C), which convolutions see as
channels-last without a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def over_maps(layer: nn.Module, x_BHWC: Tensor) -> Tensor:
    """A layer for (B, C, H, W) applied to (B, H, W, C)."""
    return layer(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def to_windows(x_BHWC: Tensor, rows: int, columns: int) -> Tensor:
    """(B, H, W, C) -> (G, rows * columns, C)."""
    batch, height, width, channels = x_BHWC.shape
    cut = x_BHWC.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return cut.transpose(2, 3).reshape(-1, rows * columns, channels)


def from_windows(x_GPC: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """(G, rows * columns, C) -> (B, H, W, C)."""
    cut = x_GPC.reshape(-1, height // rows, width // columns, rows, columns, x_GPC.shape[-1])
    return cut.transpose(2, 3).reshape(-1, height, width, x_GPC.shape[-1])


class QueryAndValue(nn.Module):
    """A narrow convolution branch that gates a projection; half of the result is the query, half the value."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim // 5, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(dim // 5, dim // 5, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(dim // 5, dim, 1),
        )
        self.linear = nn.Conv2d(dim, dim, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.conv(x_BCHW) * self.linear(x_BCHW)


class PositionBias(nn.Module):
    """A small network from the offset between two pixels to one number per head."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.pos_proj = nn.Linear(2, dim)
        for name, out in (("pos1", dim), ("pos2", dim), ("pos3", heads)):
            self.add_module(name, nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, out)))

    def forward(self, offsets_N2: Tensor) -> Tensor:
        """(N, 2) -> (N, h)."""
        x_ND = self.pos_proj(offsets_N2)
        for name in ("pos1", "pos2", "pos3"):
            x_ND = self.get_submodule(name)(x_ND)
        return x_ND


class Correlation(nn.Module):
    """Spatial and channel correlation within windows of one size."""

    bias_hPK: Tensor | None

    def __init__(self, dim: int, heads: int, base: Sequence[int], window: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.window = heads, (window[0], window[1])
        self.cells = (min(window[0], base[0]), min(window[1], base[1]))
        self.cell = (window[0] // self.cells[0], window[1] // self.cells[1])
        self.qv = QueryAndValue(dim)
        self.proj = nn.Linear(dim, dim)
        self.spatial_linear = nn.Linear(self.cell[0] * self.cell[1], 1)
        self.pos = PositionBias(dim // 16, heads)
        self.register_buffer("bias_hPK", None, persistent=False)
        self._bias_of: tuple[int, ...] = ()

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C), H and W multiples of the window -> (B, H, W, C)."""
        height, width = x_BHWC.shape[1:3]
        q_BHWC, v_BHWC = over_maps(self.qv, x_BHWC).chunk(2, dim=-1)
        q_GPC, v_GPC = to_windows(q_BHWC, *self.window), to_windows(v_BHWC, *self.window)
        u_GKC = to_windows(self._summed_over_cells(v_BHWC), *self.cells)
        y_GPC = torch.cat([self._spatial(q_GPC, u_GKC), self._channel(q_GPC, v_GPC)], -1)
        return self.proj(from_windows(y_GPC, *self.window, height, width))

    def _summed_over_cells(self, v_BHWC: Tensor) -> Tensor:
        """Learned weighted sum over each cell, the same for all channels."""
        batch, height, width, channels = v_BHWC.shape
        rows, columns = self.cell
        cut = v_BHWC.reshape(batch, height // rows, rows, width // columns, columns, channels)
        weight = self.spatial_linear.weight.view(rows, columns).to(v_BHWC.dtype)
        return torch.einsum("bhiwjc,ij->bhwc", cut, weight) + self.spatial_linear.bias

    def _spatial(self, q_GPC: Tensor, u_GKC: Tensor) -> Tensor:
        """(q u^T / d + bias) u = q (u^T u) / d + bias u, head by head."""
        windows, pixels, channels = q_GPC.shape
        q_GhPd = q_GPC.view(windows, pixels, self.heads, -1).transpose(1, 2)
        u_GhKd = u_GKC.view(windows, u_GKC.shape[1], self.heads, -1).transpose(1, 2)
        depth = u_GhKd.shape[-1]
        by_content_GhPd = q_GhPd @ (u_GhKd.transpose(-2, -1) @ u_GhKd / depth)
        # All windows beside one another, so that the large bias is read once.
        u_hKGd = u_GhKd.permute(1, 2, 0, 3).reshape(self.heads, -1, windows * depth)
        by_place_hPGd = (self._bias().to(u_hKGd.dtype) @ u_hKGd).view(self.heads, pixels, windows, depth)
        y_GhPd = by_content_GhPd + by_place_hPGd.permute(2, 0, 1, 3)
        return y_GhPd.transpose(1, 2).reshape(windows, pixels, channels)

    def _channel(self, q_GPC: Tensor, v_GPC: Tensor) -> Tensor:
        """v (v^T q) / P: channels correlated over the window, all heads as one."""
        return v_GPC @ (v_GPC.transpose(-2, -1) @ q_GPC / v_GPC.shape[1])

    def _bias(self) -> Tensor:
        """What the place of pixel and cell adds, kept until the weights change; while training, computed anew."""
        if torch.is_grad_enabled() and self.pos.pos_proj.weight.requires_grad:
            return self._compute_bias()
        versions = tuple(parameter._version for parameter in self.pos.parameters())  # counts changes in place
        if self.bias_hPK is None or versions != self._bias_of:
            with torch.autocast(self.proj.weight.device.type, enabled=False):
                self.bias_hPK, self._bias_of = self._compute_bias(), versions
        return self.bias_hPK

    def _compute_bias(self) -> Tensor:
        """The mean over a cell of the bias between a pixel and the cell's pixels: a box filter over all offsets."""
        device = self.proj.weight.device
        height, width = self.window
        rows, columns = (torch.arange(1 - side, side, device=device) for side in self.window)
        offsets_N2 = torch.cartesian_prod(rows, columns).to(self.proj.weight.dtype)
        table_1hRS = self.pos(offsets_N2).T.reshape(1, self.heads, 2 * height - 1, 2 * width - 1)
        boxes_hRS = nn.functional.avg_pool2d(table_1hRS, self.cell, stride=1)[0]
        # Pixel p and cell k: the box of offsets from p - (k + 1) * cell + 1 to p - k * cell, counted from 1 - side.
        at_rows, at_columns = (
            torch.arange(side, device=device)[:, None] + (count - 1 - torch.arange(count, device=device)) * cell
            for side, count, cell in zip(self.window, self.cells, self.cell, strict=True)
        )
        bias = boxes_hRS[:, at_rows[:, None, :, None], at_columns[None, :, None, :]]
        return bias.reshape(self.heads, height * width, -1).contiguous()
