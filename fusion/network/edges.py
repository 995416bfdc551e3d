"""Phase 7b. The image so far, high resolution -> what a learned Laplacian pyramid adds to its edges.

Axes: B batch, C = 3 colours, L levels, Q unshuffled channels; H and W of the high-resolution image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.parts import gaussian_blur, zero_mean_per_pixel, zero_start
from imaging.layers import at_least_float32

if TYPE_CHECKING:
    from fusion.network.settings import FusionSettings

_SIGMA, _RADIUS = 1.0, 2
_GAIN = 10.0  # Laplacians are a few grey levels: the same gain as for the experts' differences


def laplacians(image_BCHW: Tensor, levels: int) -> list[Tensor]:
    """What each of `levels` successive 5x5 Gaussian blurs takes away from the image, fine to coarse."""
    bands, level = [], image_BCHW
    for _ in range(levels):
        blurred = gaussian_blur(level, _SIGMA, _RADIUS)
        bands.append(level - blurred)
        level = blurred
    return bands


class EdgeLevel(nn.Module):
    """One level's Laplacian, unshuffled -> its refinement."""

    def __init__(self, unshuffled: int, width: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(unshuffled, width, 1)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.out = zero_start(nn.Conv2d(width, unshuffled, 1))

    def forward(self, band_BQHW: Tensor) -> Tensor:
        """(B, Q, H, W) -> (B, Q, H, W)."""
        return self.out(F.relu(self.near(F.relu(self.read(band_BQHW)))))


class LaplacianEdges(nn.Module):
    """Sum over levels of the refinements, times a learned strength; like 7a it cannot change brightness."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        own, self.scale = settings.edges, settings.scale
        self.levels = nn.ModuleList(EdgeLevel(settings.unshuffled, own.width) for _ in range(own.levels))
        self.strength = nn.Parameter(torch.tensor(own.strength))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, sH, sW) -> residual, unshuffled: (B, Q, H, W)."""
        with torch.autocast(image_BCHW.device.type, enabled=False):
            bands = laplacians(at_least_float32(image_BCHW), len(self.levels))
        refined = [
            level(_GAIN * F.pixel_unshuffle(band, self.scale)) for level, band in zip(self.levels, bands, strict=True)
        ]
        total_BQHW = at_least_float32(torch.stack(refined).sum(dim=0))
        return self.strength * zero_mean_per_pixel(total_BQHW) / _GAIN
