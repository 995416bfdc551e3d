"""Feature map -> feature map, each window through its best two of three experts: convolution, spectrum, attention.

Legend: B batch, C channels, H and W height and width, T windows of the batch, w side of a window, E experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from experts.native.blocks.convolution import GatedConv, PartialLargeKernel
from experts.native.blocks.mixture import Mixture, Routing, make_router
from experts.native.blocks.window_attention import WindowAttention
from experts.native.blocks.windows import from_windows, to_windows
from imaging.layers import ChannelNorm

if TYPE_CHECKING:
    from torch import Tensor


class LargeKernelExpert(nn.Module):
    """A partial large kernel and a gated convolution."""

    def __init__(self, channels: int, *, kernel: int, part: int, deployed: bool) -> None:
        super().__init__()
        self.large = PartialLargeKernel(channels, part=part, kernel=kernel, deployed=deployed)
        self.conv = GatedConv(channels)

    def forward(self, x_TCww: Tensor) -> Tensor:
        """(T, C, w, w) -> (T, C, w, w)."""
        return self.conv(self.large(x_TCww))


class SpectrumExpert(nn.Module):
    """A Fourier unit (Chi et al. 2020): 1x1 convolutions over the real and imaginary parts of the window's spectrum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, x_TCww: Tensor) -> Tensor:
        """(T, C, w, w) -> (T, C, w, w)."""
        # cuFFT takes half precision only for sides that are powers of two.
        spectrum = torch.fft.rfft2(x_TCww.float(), norm="ortho")
        parts = torch.cat([spectrum.real, spectrum.imag], dim=1)
        real, imaginary = self.narrow(F.gelu(self.widen(parts))).float().chunk(2, dim=1)
        y_TCww = torch.fft.irfft2(torch.complex(real, imaginary), s=x_TCww.shape[-2:], norm="ortho")
        return self.leave(y_TCww.to(x_TCww.dtype))


class WindowMixture(nn.Module):
    """Norm, cut into windows, route by channel statistics, add. Shifted windows every other time hide seams."""

    def __init__(
        self,
        channels: int,
        *,
        window: int = 8,
        shifted: bool = False,
        kernel: int = 7,
        part: int = 16,
        top_k: int = 2,
        routing: Routing = "sparse",
        freeze_routing: bool = False,
        deployed: bool = False,
    ) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm = ChannelNorm(channels)
        # What tells windows apart: the means and the deviations of their channels.
        self.router = make_router(2 * channels, 3, routing, frozen=freeze_routing)
        experts = (
            LargeKernelExpert(channels, kernel=kernel, part=part, deployed=deployed),
            SpectrumExpert(channels),
            WindowAttention(channels, window=window),
        )
        self.mixture = Mixture(experts, top_k=top_k, routing=routing)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, C, H, W) and the balance."""
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        x_TNC = to_windows(self.norm(x_BCHW), self.window, self.shift)
        logits_TE = None
        if self.router is not None:
            logits_TE = self.router(torch.cat([x_TNC.mean(dim=1), x_TNC.std(dim=1)], dim=-1))
        maps_TwwC = x_TNC.reshape(-1, self.window, self.window, x_TNC.shape[-1])
        mixed_TCww, balance = self.mixture(maps_TwwC.permute(0, 3, 1, 2), logits_TE)
        mixed_TNC = mixed_TCww.permute(0, 2, 3, 1).flatten(1, 2)
        return x_BCHW + from_windows(mixed_TNC, size, self.window, self.shift), balance
