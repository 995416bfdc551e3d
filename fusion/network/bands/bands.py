"""Phase 2. LR image (B, 3, H, W) in [0, 1] -> nine bands and three fused guidance bands, float32 under autocast too.

Axes: B batch, K = 9 bands (DCT low, mid, high; DWT; FFT), C = 3 colours, G = 9 = 3 tiers x 3 colours, H and W (LR).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from fusion.network.bands.dct import DctBands
from fusion.network.bands.dwt import DwtBands
from fusion.network.bands.fft import FftBands
from imaging.layers import at_least_float32

if TYPE_CHECKING:
    from fusion.network.settings import BandsSettings

BANDS = 9
GUIDANCE = 9
_TIERS = 3


class Bands(NamedTuple):
    """The nine bands after their squeeze-and-excite, and the guidance fused from them, one image per tier."""

    bands_BKCHW: Tensor
    guidance_BGHW: Tensor


class BandAttention(nn.Module):
    """Squeeze and excite, one small network per band: the mean magnitudes of its three colours set their factors."""

    def __init__(self, hidden: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Conv1d(BANDS * 3, BANDS * hidden, 1, groups=BANDS)
        self.excite = nn.Conv1d(BANDS * hidden, BANDS * 3, 1, groups=BANDS)

    def forward(self, bands_BKCHW: Tensor) -> Tensor:
        """Each band's channels times a factor in (0, 2), near 1 at the start."""
        magnitude_BK1 = bands_BKCHW.abs().mean(dim=(3, 4)).flatten(1).unsqueeze(2)
        factor_BK1 = 2 * self.excite(torch.relu(self.squeeze(magnitude_BK1))).sigmoid()
        return bands_BKCHW * factor_BK1.reshape(*bands_BKCHW.shape[:3], 1, 1)


class FrequencyBands(nn.Module):
    """DCT, DWT and FFT of the same image, attended to band by band, fused tier by tier."""

    def __init__(self, settings: BandsSettings) -> None:
        super().__init__()
        self.dct = DctBands(settings.dct_temperature)
        self.dwt = DwtBands(settings.wavelet)
        self.fft = FftBands(settings.ring_temperature)
        self.attention = BandAttention()
        self.fuse = nn.Conv2d(_TIERS * 9, _TIERS * 3, 1, groups=_TIERS)

    def forward(self, lr_BCHW: Tensor) -> Bands:
        """(B, 3, H, W) -> Bands."""
        with torch.autocast(lr_BCHW.device.type, enabled=False):
            bands_BKCHW = self.attention(self.decompose(at_least_float32(lr_BCHW)))
            # (transform, tier) -> (tier, transform): each guidance band mixes the three transforms' bands of one tier.
            tiers_BKCHW = bands_BKCHW.unflatten(1, (3, _TIERS)).transpose(1, 2).flatten(1, 2)
            return Bands(bands_BKCHW, self.fuse(tiers_BKCHW.flatten(1, 2)))

    def decompose(self, lr_BCHW: Tensor) -> Tensor:
        """The nine raw bands (B, 9, 3, H, W); each transform's three sum to the image."""
        return torch.stack([*self.dct(lr_BCHW), *self.dwt(lr_BCHW), *self.fft(lr_BCHW)], dim=1)
