"""What the fusion network hands back: the image, and the maps that say how it came about.

Axes: B batch, E experts in the order of the call, C = 3 colours, H and W of the high-resolution image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class FusionOutput(NamedTuple):
    """A batch of fused images, nominally in [0, 1] and never clamped.

    image_BCHW is base_BCHW plus the sum of `contributions`, phase by phase in the order of the dictionary.
    Each contribution has mean zero over every LR pixel's 4x4 square: whatever is learned, brightness is the base's.
    gates_BEHW are the weights asked for at each pixel: they sum to 1 and start at the base's own (where the base weighs
    frequency bands apart, at its weights for the finest band; phase 5's weights of three scales enter as their mean).
    difficulty_B1HW is in [0, 1]; None when phase 6 is off.
    """

    image_BCHW: Tensor
    base_BCHW: Tensor
    gates_BEHW: Tensor
    difficulty_B1HW: Tensor | None
    contributions: dict[str, Tensor]
