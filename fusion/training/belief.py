"""Held-out bases, fused images and truths -> how much of what was learned to believe: one number, by least squares.

A network that has seen few images learns some of their noise with the rule. On images it has not seen, its answer is
then too loud: the right rule with the wrong strength. Axes: B batch, C = 3, H and W (HR).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

BORDER = 4  # HR pixels along the edges that scores leave out too


def fit_belief(items: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    """(base, fused, truth), each (B, 3, H, W), one after the other -> the share in [0, 1] of least squared error."""
    product = power = 0.0
    for base_BCHW, fused_BCHW, hr_BCHW in items:
        inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
        learned, wanted = (fused_BCHW - base_BCHW)[inner].double(), (hr_BCHW - base_BCHW)[inner].double()
        product += float((learned * wanted).mean())
        power += float(learned.square().mean())
    return min(max(product / power, 0.0), 1.0) if power else 1.0
