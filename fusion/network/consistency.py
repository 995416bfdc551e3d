"""Fused image (B, 3, sH, sW) -> the nearest one with the right downscale, or within the experts' range.

Axes: B batch, E experts, C = 3, s the experts' scale, H and W of the LR image, O output and I input pixels along
one axis.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusion.network.base.back_projection import shrink
from imaging.layers import at_least_float32
from imaging.resize import downscale

if TYPE_CHECKING:
    from fusion.network.settings import EnvelopeSettings, FusionSettings


class LRConsistency(nn.Module):
    """Least-norm projection: the smallest change after which the antialiased bicubic downscale is the LR image,
    up to `tolerance`. The downscale is a matrix along each axis, so its pseudo-inverse is too."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        self.tolerance, self.scale = settings.consistency.tolerance, settings.scale

    def forward(self, image_BCHW: Tensor, lr_BCHW: Tensor) -> Tensor:
        """(B, 3, sH, sW) and its (B, 3, H, W) -> the projected image."""
        with torch.autocast(image_BCHW.device.type, enabled=False):
            image_BCHW, lr_BCHW = at_least_float32(image_BCHW), at_least_float32(lr_BCHW)
            missing = lr_BCHW - shrink(image_BCHW, self.scale)
            excess = missing - missing.clamp(-self.tolerance, self.tolerance)
            height, width = lr_BCHW.shape[-2:]
            up_rows, up_columns = (_inverse(side, self.scale).to(image_BCHW) for side in (height, width))
            return image_BCHW + up_rows @ excess @ up_columns.mT


@lru_cache(maxsize=16)  # tiles have few sizes, and each pseudo-inverse is an SVD
def _inverse(side: int, scale: int) -> Tensor:
    """Pseudo-inverse (s side, side), float64, of the downscale along one axis."""
    # Column j of the matrix is the downscale of an image that is 1 in row j and 0 elsewhere.
    lit = torch.eye(scale * side, dtype=torch.float64)[:, None, :, None].expand(-1, -1, -1, scale)
    matrix_OI = downscale(lit, scale)[:, 0, :, 0].T
    return torch.linalg.pinv(matrix_OI)


class Envelope(nn.Module):
    """Per pixel and colour: no lower than the lowest of the experts and the base, no higher than the highest."""

    def __init__(self, settings: EnvelopeSettings) -> None:
        super().__init__()
        self.margin = settings.margin

    def forward(self, image_BCHW: Tensor, sr_BECHW: Tensor, base_BCHW: Tensor) -> Tensor:
        """The image, the experts' images and the base -> the image held between them, give or take the margin."""
        low, high = sr_BECHW.amin(dim=1), sr_BECHW.amax(dim=1)
        low, high = torch.minimum(low, base_BCHW) - self.margin, torch.maximum(high, base_BCHW) + self.margin
        return torch.minimum(torch.maximum(image_BCHW, low), high)
