"""sr_BCHW, hr_BCHW in [0, 1] -> distance of the pixels, of their Sobel gradients, or of their structure (SSIM)."""

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


_AROUND = 9  # pixels a side: as far as an eye that looks for grain in a smooth area
_FLAT = 2 / 255  # spread below which an area counts as flat, two grey levels


class Flat(nn.Module):
    """Mean absolute difference where the truth is flat: the local spread of its grey image weighs by a Gaussian."""

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        grey_B1HW = hr_BCHW.mean(1, keepdim=True)
        mean_B1HW, square_B1HW = (
            F.avg_pool2d(one, _AROUND, 1, _AROUND // 2, count_include_pad=False) for one in (grey_B1HW, grey_B1HW**2)
        )
        variance_B1HW = (square_B1HW - mean_B1HW**2).clamp_min(0)
        return (torch.exp(-variance_B1HW / _FLAT**2) * (sr_BCHW - hr_BCHW).abs()).mean()


_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


class SSIM(nn.Module):
    """1 - SSIM (Wang et al. 2004), averaged over channels: 0 for equal images.

    Gaussian window, valid positions only: images must have at least 11 pixels a side.
    """

    def __init__(self) -> None:
        super().__init__()
        position = torch.arange(_WINDOW) - _WINDOW // 2
        window = torch.exp(-(position**2) / (2 * _SIGMA**2))
        self.register_buffer("window", window / window.sum(), persistent=False)

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number in [0, 2]."""
        x, y = sr_BCHW.flatten(0, 1).unsqueeze(1), hr_BCHW.flatten(0, 1).unsqueeze(1)
        mean_x, mean_y, xx, yy, xy = self._blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
        var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
        brightness = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
        structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
        return 1 - (brightness * structure).mean()

    def _blur(self, images_N1HW: Tensor) -> Tensor:
        window = self.get_buffer("window").to(images_N1HW.dtype)
        return F.conv2d(F.conv2d(images_N1HW, window[None, None, :, None]), window[None, None, None, :])
