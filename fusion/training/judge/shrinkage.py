"""Held-out bases, fused images and truths -> how much of what was learned to believe: one number, by least squares.

A network that has seen few images learns some of their noise with the rule. On images it has not seen, its answer is
then too loud: the right rule with the wrong strength. Axes: B batch, C = 3, H and W (HR).
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
    """Of one image, means over its pixels: what was learned times what was wanted, and the squares of both."""

    product: float
    power: float
    wanted: float


def error_moments_of(base_BCHW: Tensor, fused_BCHW: Tensor, hr_BCHW: Tensor) -> ErrorMoments:
    """(B, 3, H, W) each -> how right the change from base to fused is."""
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    learned, wanted = (fused_BCHW - base_BCHW)[inner].double(), (hr_BCHW - base_BCHW)[inner].double()
    product, power = float((learned * wanted).mean()), float(learned.square().mean())
    return ErrorMoments(product, power, float(wanted.square().mean()))


def fit_shrinkage(lessons: Iterable[ErrorMoments]) -> float:
    """The share in [0, 1] of what was learned that leaves the least squared error over all of them."""
    product = power = 0.0
    for lesson in lessons:
        product, power = product + lesson.product, power + lesson.power
    return min(max(product / power, 0.0), 1.0) if power else 1.0


def gain_db(lessons: Sequence[ErrorMoments], belief: float) -> float:
    """PSNR that this share adds to the base, the mean over images."""
    left = [one.wanted - 2 * belief * one.product + belief**2 * one.power for one in lessons]
    kept = [(one.wanted, error) for one, error in zip(lessons, left, strict=True) if one.wanted > 0 and error > 0]
    return fmean(10 * math.log10(wanted / error) for wanted, error in kept) if kept else 0.0
