"""sr_BCHW, hr_BCHW in [0, 1] -> mean distance of the pixels, or of their Sobel gradients at valid positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


class Edge(nn.Module):
    """Mean absolute difference of the horizontal and vertical Sobel derivatives, in intensity per pixel."""

    def __init__(self) -> None:
        super().__init__()
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        self.register_buffer("kernels", torch.stack([across, across.T])[:, None], persistent=False)

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number; the derivative is linear, so that of the difference is taken."""
        difference_N1HW = (sr_BCHW - hr_BCHW).flatten(0, 1).unsqueeze(1)
        return F.conv2d(difference_N1HW, self.get_buffer("kernels").to(difference_N1HW.dtype)).abs().mean()
