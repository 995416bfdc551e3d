"""Feature map -> the same map with a large kernel applied to its first channels only (PLKSR, Lee et al. 2024).

Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from experts.native.multi_branch import MultiBranchConv

if TYPE_CHECKING:
    from torch import Tensor


class PartialLargeKernel(nn.Module):
    """A dense large kernel over `part` channels; the others pass, which keeps the cost of a large field small."""

    def __init__(self, channels: int, *, part: int = 16, kernel: int = 13, deployed: bool = False) -> None:
        super().__init__()
        if part > channels:
            raise ValueError(f"a large kernel over {part} of {channels} channels")
        self.part = part
        self.conv = MultiBranchConv(part, kernel, deployed=deployed)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.part == x_BCHW.shape[1]:
            return self.conv(x_BCHW)
        seen_BCHW, passed_BCHW = x_BCHW[:, : self.part], x_BCHW[:, self.part :]
        return torch.cat([self.conv(seen_BCHW), passed_BCHW], dim=1)
