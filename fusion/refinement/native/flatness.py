"""Fused image -> how much may be added at each pixel, near 0 where it is flat: so that skies and walls get no grain.

A network that has only learned to leave flat parts alone still adds a grey level or two there; this takes it off.
Axes: B batch, C colour, H and W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

_FINE, _AROUND = 5, 9  # pixels a side: what counts as detail, and over which its energy is taken
# Detail (rms) at which half is added: docs/results/refinement.md has what more and less did.
_FAINT = 0.4 / 255


def allowance(fused_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1): energy of the fine detail, over itself plus that of the faintest that counts."""
    grey_B1HW = fused_BCHW.mean(1, keepdim=True)
    detail_B1HW = grey_B1HW - _box(grey_B1HW, _FINE)
    energy_B1HW = _box(detail_B1HW.square(), _AROUND)
    return energy_B1HW / (energy_B1HW + _FAINT**2)


def _box(x_B1HW: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(F.pad(x_B1HW, (side // 2,) * 4, mode="replicate"), side, 1)
