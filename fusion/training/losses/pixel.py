"""sr_BCHW, hr_BCHW in [0, 1] -> mean distance of the pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-3  # a quarter of a grey level: below it Charbonnier is quadratic


class L1(nn.Module):
    """Mean absolute difference."""

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        return (sr_BCHW - hr_BCHW).abs().mean()


class MSE(nn.Module):
    """Mean squared difference: what PSNR measures."""

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        return (sr_BCHW - hr_BCHW).square().mean()


class Charbonnier(nn.Module):
    """A differentiable L1: sqrt(d^2 + eps^2), averaged."""

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        return torch.sqrt((sr_BCHW - hr_BCHW).square() + _EPSILON**2).mean()
