"""A residual branch -> the same, or in training now and then nothing for an image of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class DropPath(nn.Module):
    """Drops with the chance `p` and enlarges what is kept, so that the mean stays."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"drop_path is a chance from 0 to 1, not {p}")
        self.p = p

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training or self.p == 0:
            return x_BCHW
        from torchvision.ops import stochastic_depth  # two seconds, which inference does not need to pay

        return stochastic_depth(x_BCHW, self.p, "row")
