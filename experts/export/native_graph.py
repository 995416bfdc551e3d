"""A native network -> a copy of it whose layers an exporter can follow, with the same images.

Exporters cannot follow masks cached by size, tokens sorted by where they go, loops over an image's length or spectra of
any size. The copy's layers do the same by plain matrix products over everything; the weights are shared with nobody.
Sides must be multiples of the network's own padding. Legend: B batch, C channels, H and W height and width, N pixels of
a window, W windows, T tokens, E experts.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from experts.export.scan_graph import ScanByMatrices
from experts.native.blocks.mixture import Mixture
from experts.native.blocks.split import BINOMIAL, BlurSplit, FourierSplit, LaplacianSplit
from experts.native.blocks.state_space import StateSpaceMixer
from experts.native.blocks.window_attention import LinearMixer, WindowAttention, relative_positions
from experts.native.blocks.window_mixture import SpectrumExpert, WindowMixture
from experts.native.blocks.windows import from_windows, padded, to_windows
from imaging.resize import resize_bicubic

if TYPE_CHECKING:
    from torch import Tensor

    from experts.native.base import NativeNetwork


class NativeGraph(nn.Module):
    """`NativeNetwork.forward` for sides that need no padding; bicubic enlargement as a convolution."""

    def __init__(self, network: NativeNetwork) -> None:
        super().__init__()
        self.network = _followable(network)
        self.enlarge = Enlarge(network.scale)

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, sH, sW)."""
        network = self.network
        shallow_BCHW = network.stem(lr_BCHW - 0.5)
        deep_BCHW, _ = network.body(shallow_BCHW, lr_BCHW.mean(dim=1, keepdim=True))
        refined_BCHW = network.texture(network.conv_after_body(deep_BCHW) + shallow_BCHW)
        residual_BCHW, _ = network.upsampler(refined_BCHW)
        return self.enlarge(lr_BCHW) + residual_BCHW


class Enlarge(nn.Module):
    """Bicubic enlargement of three channels: one 5x5 kernel per sub-pixel, shuffled into place."""

    kernels_S155: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        lit_1155 = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
        lit_1155[..., 4, 4] = 1
        # What one lit pixel becomes around it, read backwards, is what each sub-pixel is made of.
        answer_HW = resize_bicubic(lit_1155, scale=scale)[0, 0]
        spread = answer_HW.unflatten(0, (9, scale)).unflatten(2, (9, scale))[2:7, :, 2:7].flip(0, 2)
        kernels = spread.permute(1, 3, 0, 2).reshape(scale * scale, 1, 5, 5).float()
        self.register_buffer("kernels_S155", kernels.repeat(3, 1, 1, 1), persistent=False)

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, sH, sW)."""
        wide_BCHW = F.pad(lr_BCHW, (2, 2, 2, 2), mode="replicate")
        return F.pixel_shuffle(F.conv2d(wide_BCHW, self.kernels_S155, groups=3), self.scale)


class _Attention(WindowAttention):
    """All windows at once; a mask for each where windows are shifted."""

    def forward(self, x_BCHW: Tensor, context_BCHW: Tensor | None = None, busy_W: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        x_WNC = to_windows(x_BCHW, self.window, self.shift)
        context_WNC = x_WNC if context_BCHW is None else to_windows(context_BCHW, self.window, self.shift)
        bias = self.position_bias[self.get_buffer("positions_NN")].permute(2, 0, 1)[None]
        if self.shift:
            # After rolling, a window at the end holds pixels from the beginning, which are no neighbours of its own.
            rows, columns = (torch.arange(side) >= side - self.shift for side in size)
            piece_HW = 2 * rows.float()[:, None] + columns.float()[None]
            piece_MN = to_windows(piece_HW[None, None], self.window, 0)[..., 0]
            apart_MNN = (piece_MN[:, :, None] - piece_MN[:, None, :]).abs().clamp(max=1)
            bias = bias - 1e4 * apart_MNN.repeat(x_BCHW.shape[0], 1, 1)[:, None]  # exp(-1e4) is 0 in float32
        y_WNC = self._attend(x_WNC, context_WNC, bias)
        y_WNC = y_WNC if busy_W is None else y_WNC * busy_W[:, None, None]
        return from_windows(y_WNC, size, self.window, self.shift)


class _LinearMixer(LinearMixer):
    """Padded to whole windows whether the map needs it or not."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = x_BCHW.shape[-2:]
        tall, wide = padded(height, width, self.window)
        beyond = (0, wide - width, 0, tall - height)
        x_WNC = to_windows(F.pad(x_BCHW, beyond), self.window, 0)
        inside_WN1 = to_windows(F.pad(torch.ones_like(x_BCHW[:, :1]), beyond), self.window, 0)
        y_BCHW = from_windows(self.mix(x_WNC, inside_WN1), (tall, wide), self.window, 0)
        return y_BCHW[..., :height, :width]


class _Mixture(Mixture):
    """Every token through all experts, weighed by 0 where it was not sent."""

    def _dispatch(self, tokens: Tensor, weight_Tk: Tensor, chosen_Tk: Tensor) -> Tensor:
        mixed = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            share_T = (weight_Tk * (chosen_Tk == e)).sum(dim=-1)
            mixed = mixed + expert(tokens) * share_T.view(-1, *[1] * (tokens.dim() - 1))
        return mixed


class _Spectrum(SpectrumExpert):
    """The window's transform and its inverse as matrices."""

    def forward(self, x_TCww: Tensor) -> Tensor:
        """(T, C, w, w) -> (T, C, w, w)."""
        side = x_TCww.shape[-1]
        parts = x_TCww.flatten(2) @ self.get_buffer("there_NF")
        half = side // 2 + 1
        parts = parts.unflatten(2, (2, side, half)).transpose(1, 2).flatten(1, 2)  # real channels, then imaginary ones
        answer = self.narrow(F.gelu(self.widen(parts))).unflatten(1, (2, -1)).transpose(1, 2).flatten(2)
        return self.leave((answer @ self.get_buffer("back_FN")).unflatten(2, (side, side)))


class _FourierSplit(FourierSplit):
    """Two-dimensional transforms by matrices of cosines and sines along rows and columns."""

    def low(self, x_BCHW: Tensor) -> Tensor:
        """Transform, keep the disc, transform back."""
        height, width = x_BCHW.shape[-2:]
        m = self.margin
        wide_BCHW = F.pad(x_BCHW, (m, m, m, m), mode="replicate")
        tall, long = height + 2 * m, width + 2 * m
        cos_h, sin_h, frequency_h = _waves(tall)
        cos_w, sin_w, frequency_w = _waves(long)
        real, imaginary = wide_BCHW @ cos_w, -(wide_BCHW @ sin_w)
        real, imaginary = cos_h @ real + sin_h @ imaginary, cos_h @ imaginary - sin_h @ real
        distance = (frequency_h[:, None].square() + frequency_w[None].square()).sqrt()
        radius = self.radius.clamp(0.02, 0.5)
        disc = torch.sigmoid((radius - distance) / self.rim) / torch.sigmoid(radius / self.rim)
        real, imaginary = real * disc, imaginary * disc
        real, imaginary = cos_h @ real - sin_h @ imaginary, cos_h @ imaginary + sin_h @ real
        low_BCHW = (real @ cos_w - imaginary @ sin_w) / (tall * long)
        return low_BCHW[..., m : m + height, m : m + width]


def _waves(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and sines (side, side) of a discrete transform, and the frequencies in cycles per pixel."""
    place = torch.arange(side)
    # Whole turns are taken off in whole numbers: the sine of a large float32 is not exact.
    angle = ((place[:, None] * place[None]) % (place[-1] + 1)).float() * (2 * math.pi / side)
    frequency = torch.minimum(place, side - place).float() / side
    return angle.cos(), angle.sin(), frequency


class _Blur(BlurSplit):
    """The blur below."""

    def low(self, x_BCHW: Tensor) -> Tensor:
        """Blurred."""
        return _blur(x_BCHW)


class _Laplacian(LaplacianSplit):
    """The blur below, every second pixel, back by interpolation; sides are even."""

    def low(self, x_BCHW: Tensor) -> Tensor:
        """Down and up again."""
        small_BChw = F.avg_pool2d(_blur(x_BCHW), 2)
        return F.interpolate(small_BChw, scale_factor=2.0, mode="bilinear", align_corners=False)


def _blur(x_BCHW: Tensor) -> Tensor:
    """As in split.py, each channel as an image of its own: exporters want a kernel whose shape is written down."""
    batch, channels, height, width = x_BCHW.shape
    line_5 = torch.tensor(BINOMIAL) / sum(BINOMIAL)
    wide_X1HW = F.pad(x_BCHW, (2, 2, 2, 2), mode="replicate").reshape(batch * channels, 1, height + 4, width + 4)
    rows_X1HW = F.conv2d(wide_X1HW, line_5.view(1, 1, 5, 1))
    return F.conv2d(rows_X1HW, line_5.view(1, 1, 1, 5)).reshape(batch, channels, height, width)


_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    WindowAttention: _Attention,
    LinearMixer: _LinearMixer,
    Mixture: _Mixture,
    SpectrumExpert: _Spectrum,
    BlurSplit: _Blur,
    LaplacianSplit: _Laplacian,
    FourierSplit: _FourierSplit,
    StateSpaceMixer: ScanByMatrices,
}


def _followable(network: NativeNetwork) -> NativeNetwork:
    """A copy, each layer that exporters cannot follow with the forward of its counterpart above."""
    twin = copy.deepcopy(network)
    twin.reparameterize()
    for layer in list(twin.modules()):
        if isinstance(layer, WindowAttention):
            layer.register_buffer("positions_NN", relative_positions(layer.window), persistent=False)
        if isinstance(layer, WindowMixture):
            _add_transforms(layer)
        counterpart = _LAYERS.get(type(layer))
        if counterpart is not None:
            object.__setattr__(layer, "__class__", counterpart)  # the same weights, another forward
    return twin


def _add_transforms(layer: WindowMixture) -> None:
    """Give its spectrum expert the transform of a window as a matrix, N pixels to F numbers, and its inverse."""
    side = layer.window
    half, pixels = side // 2 + 1, side * side
    spectra = torch.fft.rfft2(torch.eye(pixels, dtype=torch.float64).view(pixels, side, side), norm="ortho")
    there_NF = torch.stack([spectra.real, spectra.imag], dim=1).flatten(1)
    lit = torch.eye(2 * side * half, dtype=torch.float64).view(-1, 2, side, half)
    back_FN = torch.fft.irfft2(torch.complex(lit[:, 0], lit[:, 1]), s=(side, side), norm="ortho").flatten(1)
    for expert in layer.mixture.experts:
        if isinstance(expert, SpectrumExpert):
            expert.register_buffer("there_NF", there_NF.float(), persistent=False)
            expert.register_buffer("back_FN", back_FN.float(), persistent=False)
