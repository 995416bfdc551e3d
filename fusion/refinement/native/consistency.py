"""A change of an image -> the nearest one that its LR image does not see, so that refining keeps to the input.

Bicubic reduction along one axis is a matrix D; D' (D D')^-1 D is what it sees of a side. Along both axes the part that
is seen is taken off at once: what remains is reduced to zero, up to rounding. Axes: B batch, C colour, H and W of the
image, L and N LR and image pixels along one axis.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from imaging.resize import resize_bicubic
from imaging.scale import SCALE


def unseen(change_BCHW: Tensor) -> Tensor:
    """(..., H, W), sides multiples of four -> the part that `downscale` makes zero of."""
    (down_LN, up_NL), (across_LN, back_NL) = (_reduction(side) for side in change_BCHW.shape[-2:])
    seen_LL = down_LN.to(change_BCHW) @ change_BCHW @ across_LN.to(change_BCHW).T
    return change_BCHW - up_NL.to(change_BCHW) @ seen_LL @ back_NL.to(change_BCHW).T


@lru_cache(maxsize=8)  # crops in training share one size, an image has two
def _reduction(side: int) -> tuple[Tensor, Tensor]:
    """The matrix (L, N) of reduction along a side and its pseudo-inverse (N, L), float32."""
    identity_11NN = torch.eye(side, dtype=torch.float64)[None, None]
    # Only the rows are resized: the columns keep their size.
    down_LN = resize_bicubic(identity_11NN, size=(side // SCALE, side))[0, 0]
    up_NL = torch.linalg.solve(down_LN @ down_LN.T, down_LN).T
    return down_LN.float(), up_NL.float().contiguous()
