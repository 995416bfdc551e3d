"""sr_BCHW and hr_BCHW in [0, 1] -> PSNR and SSIM of each image, on 8-bit values, as the literature measures them.

Rounded to 8 bits first (imaging.quantize), `border` pixels cut on all sides, then either luma (BT.601, 16..235, not
rounded again) or RGB; all arithmetic in float64 on the 0..255 scale. Axes: B batch, C channels, H height, W width.
LPIPS is in imaging/metrics/perceptual.py.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imaging.quantize import quantize_u8
from imaging.refusal import Refusal

Space = Literal["y", "rgb"]

BORDER = 4  # pixels: one LR pixel, which the literature leaves out at 4x
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
_WINDOW, _SIGMA = 11, 1.5  # with K1 = 0.01 and K2 = 0.03 those of the SSIM paper, as all published figures
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def luma(rgb_BCHW: Tensor) -> Tensor:
    """RGB in [0, 1] -> BT.601 luma (B,1,H,W) in [16/255, 235/255]. Differentiable."""
    if rgb_BCHW.ndim != 4 or rgb_BCHW.shape[1] != 3:
        raise ValueError(f"expected RGB images (B,3,H,W), got {tuple(rgb_BCHW.shape)}")
    weights_C11 = torch.tensor(_LUMA, dtype=rgb_BCHW.dtype, device=rgb_BCHW.device)[:, None, None]
    return (rgb_BCHW * weights_C11).sum(1, keepdim=True) + 16 / 255


def psnr(sr_BCHW: Tensor, hr_BCHW: Tensor, *, border: int = BORDER, space: Space = "y") -> Tensor:
    """Peak signal-to-noise ratio in dB, one float64 per image; infinite where the images are identical."""
    error_B = squared_error(sr_BCHW, hr_BCHW, border=border, space=space).mean(dim=(1, 2))
    return 10 * torch.log10(255.0**2 / error_B)


def is_of_one_colour(hr_BCHW: Tensor, *, border: int = BORDER) -> bool:
    """Whether all measured pixels of a truth are alike: what has it exactly has an infinite PSNR."""
    levels = _measured(hr_BCHW, border, "rgb")
    return levels.numel() > 0 and bool((levels.amax(dim=(-2, -1)) == levels.amin(dim=(-2, -1))).all())


def squared_error(sr_BCHW: Tensor, hr_BCHW: Tensor, *, border: int = BORDER, space: Space = "y") -> Tensor:
    """What PSNR is the mean of (BHW, without the border): squared differences of 8-bit levels, mean over channels."""
    sr, hr = _comparable(sr_BCHW, hr_BCHW, border, space, smallest=1)
    return (sr - hr).square().mean(1)


def ssim(sr_BCHW: Tensor, hr_BCHW: Tensor, *, border: int = BORDER, space: Space = "y") -> Tensor:
    """Structural similarity (Wang et al. 2004), one float64 per image: 11x11 Gaussian window, valid positions only."""
    x, y = _comparable(sr_BCHW, hr_BCHW, border, space, smallest=_WINDOW)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return (brightness * structure).mean(dim=(1, 2, 3))


def _comparable(sr: Tensor, hr: Tensor, border: int, space: Space, smallest: int) -> tuple[Tensor, Tensor]:
    """Both images on the scale and in the area that is compared: float64, 0..255."""
    if sr.shape != hr.shape or sr.ndim != 4 or sr.shape[1] != 3:
        raise ValueError(f"expected two RGB batches of one shape, got {tuple(sr.shape)} and {tuple(hr.shape)}")
    height, width = (side - 2 * border for side in sr.shape[-2:])
    if min(height, width) < smallest:
        raise Refusal(
            f"{sr.shape[-2]}x{sr.shape[-1]} leaves less than {smallest}x{smallest} pixels to compare",
            where="image to be measured",
            cure=f"measure larger images or cut a border smaller than {border}",
        )
    return _measured(sr, border, space), _measured(hr, border, space)


def _measured(rgb_BCHW: Tensor, border: int, space: Space) -> Tensor:
    height, width = rgb_BCHW.shape[-2:]
    levels = quantize_u8(rgb_BCHW[..., border : height - border, border : width - border]).double()
    return luma(levels / 255) * 255 if space == "y" else levels


def _blur(x_BCHW: Tensor) -> Tensor:
    """Separable Gaussian, without padding: each side loses 10 pixels."""
    taps = [math.exp(-((i - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for i in range(_WINDOW)]
    kernel = torch.tensor(taps, dtype=x_BCHW.dtype, device=x_BCHW.device)
    kernel = (kernel / kernel.sum()).repeat(x_BCHW.shape[1], 1, 1, 1)
    rows = F.conv2d(x_BCHW, kernel, groups=x_BCHW.shape[1])
    return F.conv2d(rows, kernel.transpose(-1, -2), groups=x_BCHW.shape[1])
