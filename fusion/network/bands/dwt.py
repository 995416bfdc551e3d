"""LR image (B, 3, H, W), float -> LL, LH+HL and HH bands by one level of a wavelet of PyWavelets, at full size.

Each band is what the inverse transform makes of its coefficients alone (symmetric borders, as PyWavelets' default).
Axes: B batch, C = 3, H and W of the LR image, L filter taps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.bands.masks import split

if TYPE_CHECKING:
    from collections.abc import Sequence


class DwtBands(nn.Module):
    """Three bands by the low-pass projection along each axis: keep the approximation, drop the detail, go back."""

    analysis_L: Tensor
    synthesis_L: Tensor

    def __init__(self, wavelet: str) -> None:
        super().__init__()
        filters = pywt.Wavelet(wavelet)  # pyright: ignore[reportAttributeAccessIssue] (a compiled class)
        self.taps: int = filters.dec_len
        # Convolution layers correlate: the analysis filter is turned round, the transposed synthesis is not.
        self.register_buffer("analysis_L", torch.tensor(filters.dec_lo).flip(0), persistent=False)
        self.register_buffer("synthesis_L", torch.tensor(filters.rec_lo), persistent=False)

    def forward(self, image_BCHW: Tensor) -> Sequence[Tensor]:
        """(B, 3, H, W) -> LL, LH+HL and HH, each of that shape; they sum to the image."""
        smooth_x = self.low_pass(image_BCHW)
        rough_x = image_BCHW - smooth_x
        low = self._down(smooth_x)
        high = rough_x - self._down(rough_x)
        return split(image_BCHW, low, high)

    def low_pass(self, image_BCHW: Tensor) -> Tensor:
        """Along W: analysis with the low-pass filter, every second value kept, synthesis from those alone."""
        width = image_BCHW.shape[-1]
        padded = image_BCHW.index_select(3, _mirrored(width, self.taps - 1, image_BCHW.device))
        lines = padded.flatten(0, 2).unsqueeze(1)
        # PyWavelets keeps the odd phase: its first coefficient looks at the pixels up to 1.
        approximation = F.conv1d(lines[..., 1:], self.analysis_L[None, None], stride=2)
        smooth = F.conv_transpose1d(approximation, self.synthesis_L[None, None], stride=2)
        smooth = smooth[..., self.taps - 2 : self.taps - 2 + width]
        return smooth.reshape(image_BCHW.shape)

    def _down(self, image_BCHW: Tensor) -> Tensor:
        """The same along H."""
        return self.low_pass(image_BCHW.transpose(2, 3)).transpose(2, 3)


def _mirrored(length: int, border: int, device: torch.device) -> Tensor:
    """Indices of a line continued by its mirror image on both sides, edge pixels repeated, however short the line."""
    index = torch.arange(-border, length + border, device=device).remainder(2 * length)
    return torch.where(index < length, index, 2 * length - 1 - index)
