"""Shallow features -> deep features by a pyramid of two paths, low and high frequencies, joined on the way back up.

    split -> level 0 -> down -> level 1 -> ... -> bottleneck -> up, skips of both paths -> ... -> level 0 again

Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from experts.native.blocks.cross_fusion import CrossFrequencyFusion
from experts.native.blocks.window_attention import WindowBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from experts.native.base import Balances


def run_block(block: nn.Module, x_BCHW: Tensor, guide_B1HW: Tensor) -> Tensor:
    """Blocks with attention also take the grey image, for finding flat windows."""
    return block(x_BCHW, guide_B1HW) if isinstance(block, WindowBlock) else block(x_BCHW)


class Blocks(nn.ModuleList):
    """Blocks one after the other."""

    def forward(self, x_BCHW: Tensor, guide_B1HW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        for block in self:
            x_BCHW = run_block(block, x_BCHW, guide_B1HW)
        return x_BCHW


class Down(nn.Conv2d):
    """(B, C, H, W) -> (B, C', H/2, W/2)."""

    def __init__(self, channels: int, wider: int) -> None:
        super().__init__(channels, wider, 2, stride=2)


class Up(nn.Module):
    """(B, C', H/2, W/2) -> (B, C, H, W)."""

    def __init__(self, wider: int, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(wider, 4 * channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Four sub-pixels of each pixel."""
        return F.pixel_shuffle(self.widen(x_BCHW), 2)


class Level(nn.Module):
    """One size of the encoder: each path's blocks, then the exchange; without `high` a single path."""

    def __init__(self, channels: int, low: Sequence[nn.Module], high: Sequence[nn.Module] | None) -> None:
        super().__init__()
        self.low = Blocks(low)
        self.high = None if high is None else Blocks(high)
        self.fuse = None if high is None else CrossFrequencyFusion(channels)

    def forward(self, low_BCHW: Tensor, high_BCHW: Tensor | None, guide_B1HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Low and high -> low and high."""
        low_BCHW = self.low(low_BCHW, guide_B1HW)
        if self.high is None or self.fuse is None or high_BCHW is None:
            return low_BCHW, None
        return self.fuse(low_BCHW, self.high(high_BCHW, guide_B1HW))


class UpLevel(nn.Module):
    """One size of the decoder: from below, beside both paths' skips, through blocks."""

    def __init__(self, wider: int, channels: int, paths: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.up = Up(wider, channels)
        self.join = nn.Conv2d((1 + paths) * channels, channels, 1)
        self.blocks = Blocks(blocks)

    def forward(self, x_BCHW: Tensor, skips: Sequence[Tensor], guide_B1HW: Tensor) -> Tensor:
        """(B, C', H/2, W/2) and skips (B, C, H, W) -> (B, C, H, W)."""
        return self.blocks(self.join(torch.cat([self.up(x_BCHW), *skips], dim=1)), guide_B1HW)


class DualPath(nn.Module):
    """The pyramid; `splitter` None makes it single-stream. `bottleneck` takes (low, high or None, guide)."""

    def __init__(
        self,
        widths: Sequence[int],
        *,
        splitter: nn.Module | None,
        levels: Sequence[Level],
        bottleneck: nn.Module,
        ups: Sequence[UpLevel],
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.splitter = splitter
        self.lift_low = nn.Conv2d(widths[0], widths[0], 1)
        self.lift_high = None if splitter is None else nn.Conv2d(widths[0], widths[0], 1)
        self.levels = nn.ModuleList(levels)
        self.down_low = nn.ModuleList(Down(*pair) for pair in pairs)
        self.down_high = None if splitter is None else nn.ModuleList(Down(*pair) for pair in pairs)
        self.bottleneck = bottleneck
        self.ups = nn.ModuleList(ups)

    def forward(self, shallow_BCHW: Tensor, guide_B1HW: Tensor) -> tuple[Tensor, Balances]:
        """(B, C, H, W) -> (B, C, H, W) and the balances of the bottleneck."""
        guides = guide_pyramid(guide_B1HW, len(self.levels))
        low_BCHW, high_BCHW = self._split(shallow_BCHW)
        skips: list[list[Tensor]] = []
        for index, level in enumerate(self.levels):
            if index:
                low_BCHW = self.down_low[index - 1](low_BCHW)
                high_BCHW = self.down_high[index - 1](high_BCHW) if self.down_high is not None else None
            low_BCHW, high_BCHW = level(low_BCHW, high_BCHW, guides[index])
            skips.append([low_BCHW] if high_BCHW is None else [low_BCHW, high_BCHW])
        x_BCHW, balances = self.bottleneck(low_BCHW, high_BCHW, guides[-1])
        # The coarsest level has no skip: its maps went through the bottleneck.
        for index, up in enumerate(self.ups):
            depth = len(self.levels) - 2 - index
            x_BCHW = up(x_BCHW, skips[depth], guides[depth])
        return x_BCHW, balances

    def _split(self, shallow_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.splitter is None or self.lift_high is None:
            return self.lift_low(shallow_BCHW), None
        # A Fourier transform leaves another memory order, and norms would copy every map of the pyramid for it.
        low_BCHW, high_BCHW = (
            part.contiguous(memory_format=torch.channels_last) for part in self.splitter(shallow_BCHW)
        )
        return self.lift_low(low_BCHW), self.lift_high(high_BCHW)


def guide_pyramid(guide_B1HW: Tensor, levels: int) -> list[Tensor]:
    """The grey image at every size, halved by means."""
    guides = [guide_B1HW]
    for _ in range(levels - 1):
        guides.append(F.avg_pool2d(guides[-1], 2))
    return guides
