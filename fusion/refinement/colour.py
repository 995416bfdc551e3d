"""A refined image and the one it was made of -> the refined one in the other's colours. Axes: C colour, H, W.

`wavelet` takes the coarse part (five levels of an undecimated wavelet transform) from the original, `adain` its mean
and spread per channel, `none` nothing. Both are what the published refiners use, after StableSR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fusion.refinement.presets import Colour

LEVELS = 5


def fix_colour(how: Colour, refined_CHW: Tensor, original_CHW: Tensor) -> Tensor:
    """By name."""
    return _FIXES[how](refined_CHW, original_CHW)


def coarse(x_CHW: Tensor, levels: int = LEVELS) -> Tensor:
    """What is left after smoothing by (1, 2, 1) / 4 along both axes, spread twice as wide each time."""
    for level in range(levels):
        x_CHW = _smooth(_smooth(x_CHW, 2**level, -1), 2**level, -2)
    return x_CHW


def _wavelet(refined_CHW: Tensor, original_CHW: Tensor) -> Tensor:
    # Fine part of the one and coarse part of the other; one transform does, since it is linear.
    return refined_CHW + coarse(original_CHW - refined_CHW)


def _adain(refined_CHW: Tensor, original_CHW: Tensor) -> Tensor:
    mean, wanted = (x.mean(dim=(1, 2), keepdim=True) for x in (refined_CHW, original_CHW))
    spread, wished = (x.std(dim=(1, 2), keepdim=True, unbiased=False) for x in (refined_CHW, original_CHW))
    return (refined_CHW - mean) / spread.clamp_min(1e-5) * wished + wanted


def _none(refined_CHW: Tensor, _original_CHW: Tensor) -> Tensor:
    return refined_CHW


def _smooth(x_CHW: Tensor, reach: int, axis: int) -> Tensor:
    """x(-reach) / 4 + x / 2 + x(+reach) / 4 along one axis; beyond the edge its last pixel goes on."""
    length = x_CHW.shape[axis]
    reach = min(reach, length)
    rest = length - reach
    sum_CHW = x_CHW / 2
    sum_CHW.narrow(axis, reach, rest).add_(x_CHW.narrow(axis, 0, rest), alpha=0.25)
    sum_CHW.narrow(axis, 0, reach).add_(x_CHW.narrow(axis, 0, 1), alpha=0.25)
    sum_CHW.narrow(axis, 0, rest).add_(x_CHW.narrow(axis, reach, rest), alpha=0.25)
    sum_CHW.narrow(axis, rest, reach).add_(x_CHW.narrow(axis, length - 1, 1), alpha=0.25)
    return sum_CHW


_FIXES: dict[Colour, Callable[[Tensor, Tensor], Tensor]] = {"wavelet": _wavelet, "adain": _adain, "none": _none}
