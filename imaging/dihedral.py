"""An image and a number from 0 to 7 -> one of its eight flips and rotations; 0 changes nothing.

0 to 3: that many quarter turns counter-clockwise; 4 to 7: mirrored left to right first, then k - 4 quarter turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

VARIANTS = 8


def transform(image: Tensor, variant: int) -> Tensor:
    """(..., H, W) -> its variant; odd quarter turns exchange H and W."""
    if variant >= 4:
        image = image.flip(-1)
    return torch.rot90(image, variant % 4, (-2, -1)) if variant % 4 else image


def undo(image: Tensor, variant: int) -> Tensor:
    """The inverse of `transform`."""
    image = torch.rot90(image, -variant % 4, (-2, -1)) if variant % 4 else image
    return image.flip(-1) if variant >= 4 else image


def transform_each(images: Tensor, variants: Sequence[int]) -> Tensor:
    """(B, ..., S, S) square images -> each in its own variant."""
    if not any(variants):
        return images
    return torch.stack([transform(image, variant) for image, variant in zip(images, variants, strict=True)])
