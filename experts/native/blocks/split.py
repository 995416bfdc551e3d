"""Feature map -> its low and its high frequencies, which sum to it.

Legend: B batch, C channels, H and W height and width; h and w those of the half spectrum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

Splitter = Literal["blur", "laplacian", "fft"]

BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)  # a Gaussian of deviation 1 pixel, nearly


class _Split(nn.Module):
    """What all splitters share: the high frequencies are input minus low, so that both always sum to the input."""

    def low(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> the low frequencies of the same size."""
        raise NotImplementedError

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> low and high, each (B, C, H, W)."""
        low_BCHW = self.low(x_BCHW)
        return low_BCHW, x_BCHW - low_BCHW


class BlurSplit(_Split):
    """A 5x5 binomial blur; the edge pixels go on beyond the edge."""

    def low(self, x_BCHW: Tensor) -> Tensor:
        """One blur along each axis."""
        return _blur(x_BCHW)


class LaplacianSplit(_Split):
    """One level of a Laplacian pyramid: blur, every second pixel, back by interpolation."""

    def low(self, x_BCHW: Tensor) -> Tensor:
        """Down and up again."""
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        small_BChw = F.avg_pool2d(_blur(x_BCHW), 2, ceil_mode=True, count_include_pad=False)
        wide_BCHW = F.interpolate(small_BChw.float(), scale_factor=2, mode="bilinear", align_corners=False)
        return wide_BCHW[..., : size[0], : size[1]].to(x_BCHW.dtype)


class FourierSplit(_Split):
    """A smooth disc in the spectrum whose radius is learned, in cycles per pixel.

    The map is continued by `margin` pixels of its edge, so that opposite edges do not mix; the disc's rim is wide
    enough for its impulse response to fade within about as many, hence tiles and whole images agree.
    """

    margin = 8

    def __init__(self, radius: float = 0.15, rim: float = 0.05) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(radius))
        self.rim = rim

    def low(self, x_BCHW: Tensor) -> Tensor:
        """Transform, keep the disc, transform back; in float32 whatever the network runs in."""
        height, width = x_BCHW.shape[-2:]
        m = self.margin
        wide_BCHW = F.pad(x_BCHW.float(), (m, m, m, m), mode="replicate")
        spectrum_BChw = torch.fft.rfft2(wide_BCHW) * self.disc(wide_BCHW.shape[-2], wide_BCHW.shape[-1])
        low_BCHW = torch.fft.irfft2(spectrum_BChw, s=wide_BCHW.shape[-2:])
        return low_BCHW[..., m : m + height, m : m + width].to(x_BCHW.dtype)

    def disc(self, height: int, width: int) -> Tensor:
        """(h, w) in (0, 1]: 1 at frequency zero, falling where the radius is reached."""
        rows = torch.fft.fftfreq(height, device=self.radius.device)
        columns = torch.fft.rfftfreq(width, device=self.radius.device)
        # In cycles per pixel, so that the disc is the same for every size of image.
        distance = (rows[:, None].square() + columns[None].square()).sqrt()
        # From nearly nothing to the Nyquist frequency: beyond either the split would be empty on one side.
        radius = self.radius.float().clamp(0.02, 0.5)
        # Divided by its value at zero, so that constant areas pass whole.
        return torch.sigmoid((radius - distance) / self.rim) / torch.sigmoid(radius / self.rim)


def make_splitter(kind: Splitter) -> nn.Module:
    """The splitter of that name."""
    kinds = {"blur": BlurSplit, "laplacian": LaplacianSplit, "fft": FourierSplit}
    if kind not in kinds:
        raise ValueError(f"unknown splitter '{kind}'; there are {', '.join(kinds)}")
    return kinds[kind]()


def _blur(x_BCHW: Tensor) -> Tensor:
    channels = x_BCHW.shape[1]
    line = torch.tensor(BINOMIAL, dtype=x_BCHW.dtype, device=x_BCHW.device) / sum(BINOMIAL)
    wide_BCHW = F.pad(x_BCHW, (2, 2, 2, 2), mode="replicate")
    rows_BCHW = F.conv2d(wide_BCHW, line.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
    return F.conv2d(rows_BCHW, line.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels).to(x_BCHW.dtype)
