"""sr_BCHW, hr_BCHW in [0, 1] -> 1 - SSIM (Wang et al. 2004), averaged over channels, differentiable.

Gaussian window of 11 pixels with sigma 1.5, valid positions only. Images must have at least 11 pixels a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIZE, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


class SSIM(nn.Module):
    """1 - SSIM: 0 for equal images."""

    def __init__(self) -> None:
        super().__init__()
        position = torch.arange(_SIZE) - _SIZE // 2
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
