"""sr_BCHW, hr_BCHW -> mean distance of the log magnitudes of their two-dimensional spectra."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FFT(nn.Module):
    """Mean |log(1 + |F(sr)|) - log(1 + |F(hr)|)| with the orthonormal transform; blind to position by design."""

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        return (self._log_magnitude(sr_BCHW) - self._log_magnitude(hr_BCHW)).abs().mean()

    def _log_magnitude(self, image_BCHW: Tensor) -> Tensor:
        return torch.log1p(torch.fft.fft2(image_BCHW.float(), norm="ortho").abs())
