"""Pieces that several phases share: zero initialisation, expert selection, zero-sum weights, norms, pixel shuffles.

Axes: B batch, E experts present, C = 3 colours, S = s*s sub-pixels of an LR pixel at the experts' scale s, Q = 3 S
unshuffled channels, D a phase's width, H and W of the LR image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imaging.layers import ChannelNorm


def zero_start(layer: nn.Conv2d) -> nn.Conv2d:
    """Zero weights and bias: the phase's output is zero until it is trained."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def pick(x: Tensor, indices: tuple[int, ...], dim: int) -> Tensor:
    """Select experts along `dim`; nothing is copied when all are there in order."""
    if indices == tuple(range(x.shape[dim])):
        return x
    return torch.stack([x.select(dim, index) for index in indices], dim)


def zero_sum(x_BE: Tensor) -> Tensor:
    """Subtract the mean over the experts (dimension 1), so that changes of weights cancel and their sum stays 1."""
    return x_BE - x_BE.mean(dim=1, keepdim=True)


def weigh(delta_BESHW: Tensor, diff_BEQHW: Tensor) -> Tensor:
    """Sum over experts of a weight per sub-pixel times that expert's difference -> (B, Q, H, W)."""
    delta_BE1SHW = delta_BESHW.to(diff_BEQHW.dtype).unsqueeze(2)
    diff_BECSHW = diff_BEQHW.unflatten(2, (3, -1))
    return (delta_BE1SHW * diff_BECSHW).sum(dim=1).flatten(1, 2)


def zero_mean_per_pixel(residual_BQHW: Tensor) -> Tensor:
    """Take the mean over each LR pixel's sub-pixels out of what a phase adds: it can sharpen, but not brighten.

    Of the squared error that real experts' blend leaves, less than 3 % lies in those means: little is given up.
    """
    residual_BCSHW = residual_BQHW.unflatten(1, (3, -1))
    return (residual_BCSHW - residual_BCSHW.mean(dim=2, keepdim=True)).flatten(1, 2)


def repeat_edges(image_NCHW: Tensor, radius: int) -> Tensor:
    """Replicate padding by indexing: torch 2.11 cannot compile the gradient of its own for the CPU."""
    for dim in (-2, -1):
        side = image_NCHW.shape[dim]
        index = torch.arange(-radius, side + radius, device=image_NCHW.device).clamp(0, side - 1)
        image_NCHW = image_NCHW.index_select(dim, index)
    return image_NCHW


def gaussian_blur(image_NCHW: Tensor, sigma: float, radius: int) -> Tensor:
    """Gaussian of `sigma` pixels cut at `radius`, edges replicated.

    A run of rows is a small matrix times the rows that it is made of: on a CPU several times as fast as convolutions
    with one channel per group.
    """
    wide = repeat_edges(image_NCHW, radius)
    height, width = image_NCHW.shape[-2:]
    band = _gaussian_band(sigma, radius, image_NCHW)
    rows: list[Tensor] = []
    for top in range(0, height, _RUN):
        run = min(_RUN, height - top)
        rows.append(band[:run, : run + 2 * radius] @ wide[..., top : top + run + 2 * radius, :])
    blurred = torch.cat(rows, dim=-2)
    columns: list[Tensor] = []
    for left in range(0, width, _RUN):
        run = min(_RUN, width - left)
        columns.append(blurred[..., left : left + run + 2 * radius] @ band[:run, : run + 2 * radius].mT)
    return torch.cat(columns, dim=-1)


_RUN = 32  # long enough for fast matrix products, short enough that few of a matrix's weights are zero


def _gaussian_band(sigma: float, radius: int, like: Tensor) -> Tensor:
    """The weights (run, run + 2 radius) of consecutive pixels over those from `radius` before the first."""
    output = torch.arange(_RUN, device=like.device)[:, None] + radius
    distance = torch.arange(_RUN + 2 * radius, device=like.device) - output
    weights = torch.exp(-0.5 * (distance.to(like.dtype) / sigma) ** 2) * (distance.abs() <= radius)
    return weights / weights.sum(dim=-1, keepdim=True)


def channel_norm(width: int) -> ChannelNorm:
    """The fusion's norm, as its published weights were trained: torch's default eps, float32 under any autocast."""
    return ChannelNorm(width, eps=1e-5, in_float32=True)


class ExpertConv(nn.Module):
    """A convolution over the concatenated channels of all known experts that takes whichever are present.

    Leaving an expert out is the same as feeding it zeros, without the multiply-adds.
    """

    def __init__(self, experts: int, channels: int, width: int) -> None:
        super().__init__()
        self.weight_DEC = nn.Parameter(torch.empty(width, experts, channels))
        self.bias_D = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight_DEC, std=(experts * channels) ** -0.5)

    def forward(self, x_BECHW: Tensor, indices: tuple[int, ...]) -> Tensor:
        """(B, E, C, H, W) of the experts at `indices` -> (B, D, H, W)."""
        weight_DX11 = pick(self.weight_DEC, indices, dim=1).flatten(1)[:, :, None, None]
        return F.conv2d(x_BECHW.flatten(1, 2), weight_DX11, self.bias_D)


class ResidualBlock(nn.Module):
    """x + conv 3x3, GELU, conv 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        return x_BDHW + self.second(F.gelu(self.first(x_BDHW)))
