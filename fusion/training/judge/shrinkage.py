"""Held-out bases, fused images and truths -> the shrinkage factor of what was learned: one number, by least squares.

A network trained on few images fits some of their noise. On other images its change of the base then has the right
direction but too large an amplitude. Axes: B batch, C = 3, H and W (HR).
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

BORDER = 4  # HR pixels along the edges that scores leave out too


class ErrorMoments(NamedTuple):
    """Means over the pixels of one image. `learned` is fused - base, `wanted` is truth - base.

    `product` is the mean of learned * wanted, `power` of learned squared, `wanted` of wanted squared.
    """

    product: float
    power: float
    wanted: float


def error_moments_of(base_BCHW: Tensor, fused_BCHW: Tensor, hr_BCHW: Tensor) -> ErrorMoments:
    """(B, 3, H, W) each -> the moments of the change from base to fused."""
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    learned, wanted = (fused_BCHW - base_BCHW)[inner].double(), (hr_BCHW - base_BCHW)[inner].double()
    product, power = float((learned * wanted).mean()), float(learned.square().mean())
    return ErrorMoments(product, power, float(wanted.square().mean()))


def fit_shrinkage(moments: Iterable[ErrorMoments]) -> float:
    """The factor in [0, 1] of what was learned that leaves the least squared error over all images."""
    product = power = 0.0
    for one in moments:
        product, power = product + one.product, power + one.power
    # Clipped: a factor above 1 would extrapolate beyond what was trained, a negative one would reverse it.
    return min(max(product / power, 0.0), 1.0) if power else 1.0


def gain_db(moments: Sequence[ErrorMoments], factor: float) -> float:
    """PSNR that this factor adds to the base, the mean over images."""
    left = [one.wanted - 2 * factor * one.product + factor**2 * one.power for one in moments]
    kept = [(one.wanted, error) for one, error in zip(moments, left, strict=True) if one.wanted > 0 and error > 0]
    return fmean(10 * math.log10(wanted / error) for wanted, error in kept) if kept else 0.0
