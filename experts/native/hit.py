"""HiT-SRF (Zhang et al. 2024): LR image in [0, 1] -> SR image; the published key layout loads. spandrel lacks it.

Groups of blocks: each block correlates pixels within windows, small in the first block of a group, large in the last.

Legend: B batch, C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experts.native.hit_correlation import Correlation, over_maps
from experts.native.recognise import Built, OwnArchitecture, sequence_length, stores_hyperparameters
from experts.pad import mirrored_positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from experts.native.recognise import Tensors

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
BASE_WINDOW = (8, 8)
HIERARCHY = (0.5, 1, 2, 4, 6, 8)  # sides of a group's windows, in base windows


class ConvFFN(nn.Module):
    """Widen, add what a 5x5 depthwise convolution sees, narrow."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Module()
        self.dwconv.depthwise_conv = nn.Sequential(nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden), nn.GELU())
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x_BHWC = nn.functional.gelu(self.fc1(x_BHWC))
        return self.fc2(x_BHWC + over_maps(self.dwconv.get_submodule("depthwise_conv"), x_BHWC))


class Block(nn.Module):
    """Correlation in one window size and a feed-forward part, each normalised after it."""

    def __init__(self, dim: int, heads: int, base: Sequence[int], window: Sequence[int], mlp_ratio: float) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim)
        self.correlation = Correlation(dim, heads, base, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ConvFFN(dim, int(dim * mlp_ratio))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) of any size -> the same size; windows that lead out of the map see it mirrored."""
        height, width = x_BHWC.shape[1:3]
        padded_BHWC = x_BHWC
        for axis, side in enumerate(self.window, start=1):
            length = x_BHWC.shape[axis]
            if length % side:
                positions = mirrored_positions(length, -(-length // side) * side)
                padded_BHWC = padded_BHWC.index_select(axis, positions.to(x_BHWC.device))
        y_BHWC = self.correlation(padded_BHWC)[:, :height, :width]
        x_BHWC = x_BHWC + self.norm1(y_BHWC)
        return x_BHWC + self.norm2(self.mlp(x_BHWC))


class BlockGroup(nn.Module):
    """Blocks of growing windows, a convolution, the group's input added."""

    def __init__(self, blocks: Sequence[Block], dim: int) -> None:
        super().__init__()
        self.residual_group = nn.Module()
        self.residual_group.blocks = nn.Sequential(*blocks)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return x_BHWC + over_maps(self.conv, self.residual_group.get_submodule("blocks")(x_BHWC))


@stores_hyperparameters
class HiTSRF(nn.Module):
    """The network under its published key names: input and output RGB, nominally in [0, 1], not clamped."""

    hyperparameters: dict[str, Any] = {}

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 60,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6),
        base_win_size: Sequence[int] = BASE_WINDOW,
        hier_win_ratios: Sequence[float] = HIERARCHY,
        mlp_ratio: float = 2.0,
        upscale: int = 4,
        img_range: float = 1.0,
    ) -> None:
        super().__init__()
        windows = [tuple(int(side * ratio) for side in base_win_size) for ratio in hier_win_ratios]
        self.img_range = img_range
        mean = DIV2K_MEAN if in_chans == 3 else (0.0,) * in_chans
        self.register_buffer("mean", torch.tensor(mean).view(1, in_chans, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.patch_embed = nn.Module()
        self.patch_embed.norm = nn.LayerNorm(embed_dim)
        self.layers = nn.Sequential()
        for depth, heads in zip(depths, num_heads, strict=True):
            blocks = [Block(embed_dim, heads, base_win_size, windows[index], mlp_ratio) for index in range(depth)]
            self.layers.append(BlockGroup(blocks, embed_dim))
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        self.upsample = nn.Sequential(
            nn.Conv2d(embed_dim, in_chans * upscale**2, 3, padding=1), nn.PixelShuffle(upscale)
        )

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, sH, sW)."""
        mean = self.get_buffer("mean").to(lr_BCHW)
        shallow_BCHW = self.conv_first((lr_BCHW - mean) * self.img_range)
        x_BHWC = self.patch_embed.get_submodule("norm")(shallow_BCHW.permute(0, 2, 3, 1).contiguous())
        x_BHWC = self.norm(self.layers(x_BHWC))
        deep_BCHW = self.conv_after_body(x_BHWC.permute(0, 3, 1, 2))
        return self.upsample(deep_BCHW + shallow_BCHW) / self.img_range + mean


def build_hit(tensors: Tensors) -> Built:
    """Tensors -> the network they imply. The base window leaves no trace: 8x8, as published."""
    dim, in_channels = tensors["conv_first.weight"].shape[:2]
    groups = range(sequence_length(tensors, "layers"))
    block = "layers.{}.residual_group.blocks.{}"
    blocks = [sequence_length(tensors, f"layers.{group}.residual_group.blocks") for group in groups]
    upscale = math.isqrt(tensors["upsample.0.weight"].shape[0] // in_channels)
    network = HiTSRF(
        in_chans=in_channels,
        embed_dim=dim,
        depths=blocks,
        num_heads=[tensors[f"{block.format(g, 0)}.correlation.pos.pos3.2.weight"].shape[0] for g in groups],
        hier_win_ratios=[
            window_ratio(tensors[f"{block.format(0, index)}.correlation.spatial_linear.weight"], index)
            for index in range(max(blocks))
        ],
        mlp_ratio=tensors[f"{block.format(0, 0)}.mlp.fc1.weight"].shape[0] / dim,
        upscale=upscale,
    )
    return Built(network, tensors, upscale, in_channels, in_channels)


def window_ratio(spatial_linear: Tensor, index: int) -> float:
    """A window's side in base windows: the sum over a cell has one weight per pixel; up to a base window, one."""
    side = math.isqrt(spatial_linear.shape[1])
    return HIERARCHY[index] if side == 1 and index < len(HIERARCHY) and HIERARCHY[index] <= 1 else side


_BLOCK = "layers.0.residual_group.blocks.0"
HIT_FILES = OwnArchitecture(
    "HiT_SRF",
    layouts=(
        frozenset(
            (
                "conv_first.weight",
                "patch_embed.norm.weight",
                f"{_BLOCK}.correlation.qv.linear.weight",
                f"{_BLOCK}.correlation.spatial_linear.weight",
                f"{_BLOCK}.correlation.pos.pos3.2.weight",
                f"{_BLOCK}.mlp.dwconv.depthwise_conv.0.weight",
                "conv_after_body.weight",
                "upsample.0.weight",
            )
        ),
    ),
    build=build_hit,
)
