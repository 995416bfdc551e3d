"""A refined image, the fused one it was made of, their LR image -> colours fixed, the low band held, both measured.

The colour fix `wavelet` takes the coarse part (five levels of an undecimated wavelet transform) from the fused image,
`adain` its mean and spread per channel, `none` nothing: what the published refiners use, after StableSR.

The low band is the span of the lowest 1/32 of the cosines (DCT-II) along each axis: the frequencies that five wavelet
levels leave to the coarse part. Taking it is a true projection, so it can be made equal exactly, which the colour fix
itself, an undecimated transform, cannot. Axes: C colour, H and W of the image, K cosines, N pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from imaging.resize import downscale

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fusion.refinement.presets import Colour

GREY_LEVELS = 255
LEVELS = 5  # of the wavelet transform, as published; the low band below follows from it


def fix_colour(how: Colour, refined_CHW: Tensor, fused_CHW: Tensor) -> Tensor:
    """By name."""
    return _FIXES[how](refined_CHW, fused_CHW)


def coarse(x_CHW: Tensor, levels: int = LEVELS) -> Tensor:
    """What is left after smoothing by (1, 2, 1) / 4 along both axes, spread twice as wide each time."""
    for level in range(levels):
        x_CHW = _smooth(_smooth(x_CHW, 2**level, -1), 2**level, -2)
    return x_CHW


def _wavelet(refined_CHW: Tensor, fused_CHW: Tensor) -> Tensor:
    # Fine part of the one and coarse part of the other; one transform does, since it is linear.
    return refined_CHW + coarse(fused_CHW - refined_CHW)


def _adain(refined_CHW: Tensor, fused_CHW: Tensor) -> Tensor:
    mean, fused_mean = (x.mean(dim=(1, 2), keepdim=True) for x in (refined_CHW, fused_CHW))
    spread, fused_spread = (x.std(dim=(1, 2), keepdim=True, unbiased=False) for x in (refined_CHW, fused_CHW))
    return (refined_CHW - mean) / spread.clamp_min(1e-5) * fused_spread + fused_mean


def _none(refined_CHW: Tensor, _fused_CHW: Tensor) -> Tensor:
    return refined_CHW


def _smooth(x_CHW: Tensor, reach: int, axis: int) -> Tensor:
    """x(-reach) / 4 + x / 2 + x(+reach) / 4 along one axis; beyond the edge its last pixel goes on."""
    length = x_CHW.shape[axis]
    reach = min(reach, length)  # of small images the widest filters see the edge pixel alone
    rest = length - reach
    sum_CHW = x_CHW / 2
    sum_CHW.narrow(axis, reach, rest).add_(x_CHW.narrow(axis, 0, rest), alpha=0.25)
    sum_CHW.narrow(axis, 0, reach).add_(x_CHW.narrow(axis, 0, 1), alpha=0.25)
    sum_CHW.narrow(axis, 0, rest).add_(x_CHW.narrow(axis, reach, rest), alpha=0.25)
    sum_CHW.narrow(axis, rest, reach).add_(x_CHW.narrow(axis, length - 1, 1), alpha=0.25)
    return sum_CHW


_FIXES: dict[Colour, Callable[[Tensor, Tensor], Tensor]] = {"wavelet": _wavelet, "adain": _adain, "none": _none}


def low_band(x_CHW: Tensor) -> Tensor:
    """The part of an image (float32) that the guard holds."""
    rows_KN, columns_KN = (_cosines(side) for side in x_CHW.shape[-2:])
    coefficients_CKK = rows_KN @ x_CHW @ columns_KN.T
    return rows_KN.T @ coefficients_CKK @ columns_KN


def hold_low_band(refined_CHW: Tensor, fused_CHW: Tensor) -> Tensor:
    """The nearest image to the refined one that has the fused one's low band."""
    return refined_CHW + low_band(fused_CHW - refined_CHW)


def measure(image_CHW: Tensor, fused_CHW: Tensor, lr_CHW: Tensor | None) -> dict[str, float]:
    """In grey levels: the largest change in the low band, the mean square change (its root), and how far the
    downscaled image is from the LR image (root mean square), beside the same of the fused image."""
    change_CHW = image_CHW - fused_CHW
    found = {"low_band_drift": _levels(low_band(change_CHW).abs().max()), "change_rms": _rms(change_CHW)}
    if lr_CHW is not None:
        found["lr_rms"] = _lr_rms(image_CHW, lr_CHW)
        found["lr_rms_before"] = _lr_rms(fused_CHW, lr_CHW)
    return found


def _lr_rms(image_CHW: Tensor, lr_CHW: Tensor) -> float:
    # Bicubic reduction overshoots at edges; an LR file is cut off at black and white, where the truth itself is beyond.
    return _rms(downscale(image_CHW.clamp(0, 1)[None])[0].clamp(0, 1) - lr_CHW)


def _rms(x: Tensor) -> float:
    return _levels(x.square().mean().sqrt())


def _levels(value: Tensor) -> float:
    return round(float(value) * GREY_LEVELS, 4)


def _cosines(side: int) -> Tensor:
    """(K, N) float32, orthonormal rows; at least the constant one."""
    count = max(1, side // 2**LEVELS)
    index_K, place_N = (torch.arange(length, dtype=torch.float64) for length in (count, side))
    rows_KN = torch.cos(index_K[:, None] * (place_N + 0.5) * (math.pi / side)) * math.sqrt(2 / side)
    rows_KN[0] = math.sqrt(1 / side)
    return rows_KN.float()
