"""sr_BCHW, hr_BCHW -> mean distance of their log Fourier magnitudes, or of their stationary wavelet coefficients.

The wavelet transform (db4, 3 levels, periodic edges) is linear, so the coefficients of the difference are taken once.
Filters come from PyWavelets.
Legend: B batch, C channels, H and W height and width, N = B*C planes, T filter taps.
"""

from __future__ import annotations

import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FFT(nn.Module):
    """Mean |log(1 + |F(sr)|) - log(1 + |F(hr)|)| with the orthonormal transform; blind to position by design."""

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        return (self._log_magnitude(sr_BCHW) - self._log_magnitude(hr_BCHW)).abs().mean()

    def _log_magnitude(self, image_BCHW: Tensor) -> Tensor:
        return torch.log1p(torch.fft.fft2(image_BCHW.float(), norm="ortho").abs())


LEVELS = 3


class SWT(nn.Module):
    """Mean over bands of the mean absolute coefficient of the difference: LL of the last level, LH, HL, HH of each."""

    def __init__(self, wavelet: str = "db4", levels: int = LEVELS) -> None:
        super().__init__()
        self._levels = levels
        found = pywt.Wavelet(wavelet)  # pyright: ignore[reportAttributeAccessIssue] (compiled)
        # Convolution is correlation with the reversed filter; rows: low, high.
        filters = torch.tensor([found.dec_lo[::-1], found.dec_hi[::-1]], dtype=torch.float64)
        self.register_buffer("filters_2T", filters.float(), persistent=False)

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        bands = self.transform(sr_BCHW - hr_BCHW)
        return torch.stack([band.abs().mean() for band in bands]).mean()

    def transform(self, image_BCHW: Tensor) -> list[Tensor]:
        """[LL, then (LH, HL, HH) from the coarsest level to the finest], each (N,1,H,W)."""
        low_N1HW = image_BCHW.flatten(0, 1).unsqueeze(1)
        details: list[Tensor] = []
        for level in range(self._levels):
            low_N1HW, *fine = self._step(low_N1HW, 2**level)
            details = [*fine, *details]
        return [low_N1HW, *details]

    def _step(self, image_N1HW: Tensor, spacing: int) -> list[Tensor]:
        """One level: low-low, then low along the width and high along the height, the reverse, high-high."""
        rows_N2HW = self._along(image_N1HW, spacing, vertical=True)
        low, high = (self._along(part, spacing, vertical=False) for part in rows_N2HW.split(1, dim=1))
        return [low[:, :1], high[:, :1], low[:, 1:], high[:, 1:]]

    def _along(self, image_N1HW: Tensor, spacing: int, *, vertical: bool) -> Tensor:
        filters = self.get_buffer("filters_2T").to(image_N1HW.dtype)
        taps = filters.shape[1]
        before, after = (taps // 2 - 1) * spacing, taps // 2 * spacing
        if vertical:
            padded = F.pad(image_N1HW, (0, 0, before, after), mode="circular")
            return F.conv2d(padded, filters[:, None, :, None], dilation=(spacing, 1))
        padded = F.pad(image_N1HW, (before, after, 0, 0), mode="circular")
        return F.conv2d(padded, filters[:, None, None, :], dilation=(1, spacing))
