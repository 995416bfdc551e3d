"""An image made in tiles and the same made whole -> how much they differ where tiles meet, and elsewhere.

Axes: C colour, H and W at four times LR size. Levels are grey levels of 8 bits, as floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from imaging.refusal import Refusal
from imaging.scale import SCALE
from imaging.tiling import RAMP, plan_feathered_spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imaging.tiling import FeatheredSpan

_BESIDE = 4  # pixels on both sides of a ramp that still count as the seam


@dataclass(frozen=True)
class Seams:
    """Grey levels: root mean squares at seams and elsewhere, the greatest difference, and the greatest step.

    A step is the mean jump of the difference from one row or column to the next along the whole seam: noise
    averages out, a line that an eye could follow does not.
    """

    at_seams: float
    elsewhere: float
    greatest: float
    step: float


def compare(whole_HWC: np.ndarray, tiled_HWC: np.ndarray, *, tile: int, margin: int, multiple: int) -> Seams:
    """Images of one size, in tiles as inference plans them; at least one seam must lie in the image."""
    difference_HWC = tiled_HWC.astype(np.float64) - whole_HWC
    height, width = (side // SCALE for side in whole_HWC.shape[:2])
    rows, columns = (plan_feathered_spans(side, tile, margin, multiple) for side in (height, width))
    at_H, at_W = _near(rows), _near(columns)
    near_HW = at_H[:, None] | at_W[None]
    if not near_HW.any():
        what = f"an image of {height}x{width} LR pixels has no seam in tiles of {tile} and their margins of {margin}"
        raise Refusal(what, where="--tile", cure="give smaller tiles or a larger image")
    square_HW = (difference_HWC**2).mean(-1)
    steps = [np.abs(np.diff(difference_HWC, axis=axis).mean(axis=1 - axis)) for axis in (0, 1)]
    along = [step[at[1:] & at[:-1]] for step, at in zip(steps, (at_H, at_W), strict=True)]
    return Seams(
        at_seams=float(np.sqrt(square_HW[near_HW].mean())),
        elsewhere=float(np.sqrt(square_HW[~near_HW].mean())),
        greatest=float(np.abs(difference_HWC).max()),
        step=float(max(values.max() for values in along if values.size)),
    )


def _near(spans: Sequence[FeatheredSpan]) -> np.ndarray:
    """Along one axis: which pixels lie in a ramp or beside it."""
    near = np.zeros(SCALE * spans[-1].stop, dtype=bool)
    for span in spans[1:]:
        near[max(0, SCALE * span.low - _BESIDE) : SCALE * (span.low + RAMP) + _BESIDE] = True
    return near
