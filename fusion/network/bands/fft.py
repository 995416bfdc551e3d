"""LR image (B, 3, H, W), float, of any size -> low, mid and high bands by soft rings of the Fourier spectrum.

Axes: B batch, C = 3, H and W of the LR image, Y and X frequencies (X the non-negative half).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusion.network.bands.masks import AdaptiveCuts, soft_masks, split

if TYPE_CHECKING:
    from collections.abc import Sequence

CORNER = 0.5 * 2**0.5  # the largest radius there is, in cycles per pixel


def radius_of_bins(height: int, width: int, like: Tensor) -> Tensor:
    """Distance of each bin of `rfft2` from the mean's, 1 in the far corner. The mean itself is at 0: the low band."""
    y = torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)
    x = torch.fft.rfftfreq(width, dtype=like.dtype, device=like.device)
    return (y[:, None].square() + x[None].square()).sqrt() / CORNER


class FftBands(nn.Module):
    """Three rings; their radii adapt to the image."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.cuts = AdaptiveCuts(start=(0.2, 0.5))

    def masks(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low, mid and high rings over the half spectrum, (B, Y, X) each."""
        position_YX = radius_of_bins(image_BCHW.shape[2], image_BCHW.shape[3], image_BCHW)
        return soft_masks(position_YX, self.cuts(image_BCHW), self.temperature)

    def forward(self, image_BCHW: Tensor) -> Sequence[Tensor]:
        """(B, 3, H, W) -> three bands of that shape which sum to it."""
        size = (image_BCHW.shape[2], image_BCHW.shape[3])
        spectrum_BCYX = torch.fft.rfft2(image_BCHW)
        low_BYX, _, high_BYX = self.masks(image_BCHW)
        low = torch.fft.irfft2(spectrum_BCYX * low_BYX.unsqueeze(1), s=size)
        high = torch.fft.irfft2(spectrum_BCYX * high_BYX.unsqueeze(1), s=size)
        return split(image_BCHW, low, high)
