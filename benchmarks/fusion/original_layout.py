"""The original document's seven phases at the sizes it gives, as a reference for cost alone.

Nothing here is used for fusing images: `python -m fusion bench` counts and times it against `FusionSR`, so that "ten
times cheaper" is a measurement. Phases 5, 7a and 7b run at HR size, attention and LKA at every band and every expert.
Where the description and its own table of parameters disagree (phases 5 and 7a) the smaller, cheaper reading is taken;
`refine_width` is then chosen so that both networks have the same number of parameters.
Axes: B batch, E experts, K = 9 bands, C = 3 colours, D width, H and W of the LR image (times 4 for experts' images).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.attention import LKABlock
from fusion.network.bands.bands import BANDS, GUIDANCE, FrequencyBands
from fusion.network.edges import laplacians
from fusion.network.parts import ResidualBlock
from fusion.network.settings import BandsSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

_BAND_WIDTH, _COMMON_WIDTH, _LEVEL_WIDTH, _EDGE_WIDTH, _EXPANSION = 64, 128, 32, 32, 4
_REFINE_WIDTHS = range(8, 161)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3, same size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class PixelAttention(nn.Module):
    """`nn.MultiheadAttention` over the tokens of every pixel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens_BTDHW: Tensor) -> Tensor:
        """(B, T, D, H, W) -> the same."""
        batch, tokens, width, height, columns = tokens_BTDHW.shape
        flat = tokens_BTDHW.permute(0, 3, 4, 1, 2).reshape(-1, tokens, width)
        mixed, _ = self.attention(flat, flat, flat, need_weights=False)
        return mixed.reshape(batch, height, columns, tokens, width).permute(0, 3, 4, 1, 2)


class OriginalCrossBand(nn.Module):
    """Phase 3: project to 64, attend across bands, gate, one LKA block for all nine bands, back to colours."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(BANDS * 3, BANDS * _BAND_WIDTH, 1, groups=BANDS)
        self.attention = PixelAttention(_BAND_WIDTH, 4)
        self.gates_K = nn.Parameter(torch.zeros(BANDS))
        self.lka = LKABlock(_BAND_WIDTH, _EXPANSION)
        self.back = nn.Conv2d(BANDS * _BAND_WIDTH, BANDS * 3, 1, groups=BANDS)

    def forward(self, bands_BKCHW: Tensor) -> Tensor:
        """Nine bands -> the nine enhanced ones, concatenated."""
        tokens = self.project(bands_BKCHW.flatten(1, 2)).unflatten(1, (BANDS, -1))
        tokens = tokens + self.gates_K.softmax(0)[:, None, None, None] * self.attention(tokens)
        mixed = self.lka(tokens.flatten(0, 1)).unflatten(0, (-1, BANDS))
        return self.back(mixed.flatten(1, 2))


class OriginalCollaboration(nn.Module):
    """Phase 4: features to 128, attention across experts, LKA for every expert, consensus, modulation."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(count, _COMMON_WIDTH, 1) for count in channels)
        self.attention = PixelAttention(_COMMON_WIDTH, 8)
        self.lka = LKABlock(_COMMON_WIDTH, _EXPANSION)
        self.consensus = conv(_COMMON_WIDTH, _COMMON_WIDTH)
        self.modulation = nn.Sequential(
            nn.Conv2d(2 * _COMMON_WIDTH, 64, 1), nn.GELU(), nn.Conv2d(64, 3, 1), nn.Sigmoid()
        )

    def forward(self, sr_BECHW: Tensor, feats: Sequence[Tensor]) -> Tensor:
        """Experts' images times (1 + 0.2 m)."""
        tokens = torch.stack([layer(feat) for layer, feat in zip(self.project, feats, strict=True)], dim=1)
        tokens = tokens + self.attention(tokens)
        tokens = self.lka(tokens.flatten(0, 1)).unflatten(0, (-1, len(feats)))
        common = self.consensus(tokens.mean(dim=1)).unsqueeze(1).expand_as(tokens)
        m = self.modulation(torch.cat([tokens, common], dim=2).flatten(0, 1))
        m = F.interpolate(m, scale_factor=4, mode="bilinear").unflatten(0, (-1, len(feats)))
        return sr_BECHW * (1 + 0.2 * m)


class OriginalLevel(nn.Module):
    """One level of phase 5 at its own resolution."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        width = _LEVEL_WIDTH
        self.body = nn.Sequential(conv(inputs, width), ResidualBlock(width), ResidualBlock(width))
        self.gate = nn.Sequential(conv(width, width), nn.GELU(), conv(width, width), nn.Sigmoid())
        self.out = conv(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenated images -> residual."""
        y = self.body(x)
        return self.out(y * self.gate(y))


class OriginalFusion(nn.Module):
    """All phases in the original order."""

    def __init__(self, channels: Sequence[int], refine_width: int) -> None:
        super().__init__()
        experts = len(channels)
        self.bands = FrequencyBands(BandsSettings())
        self.cross_band = OriginalCrossBand()
        self.collaboration = OriginalCollaboration(channels)
        self.levels = nn.ModuleList(OriginalLevel(3 * experts + (3 if index else 0)) for index in range(3))
        self.routing = nn.Sequential(nn.Conv2d(BANDS * 3 + GUIDANCE, 32, 1), nn.GELU(), nn.Conv2d(32, experts, 1))
        self.difficulty = nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 32), nn.ReLU(), conv(32, 1), nn.Sigmoid())
        self.gates = nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 32), nn.ReLU(), nn.Conv2d(32, experts, 1))
        self.temperature = nn.Parameter(torch.tensor(10.0))
        middle = [layer for _ in range(4) for layer in (conv(refine_width, refine_width), nn.GELU())]
        self.refine = nn.Sequential(conv(3, refine_width), nn.GELU(), *middle, conv(refine_width, 3))
        width = _EDGE_WIDTH
        self.edges = nn.ModuleList(
            nn.Sequential(conv(3, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, 3)) for _ in range(3)
        )
        self.residual_scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, lr_BCHW: Tensor, sr_BECHW: Tensor, feats: Sequence[Tensor]) -> Tensor:
        """LR image, experts' images, their features -> image."""
        bands = self.bands(lr_BCHW)
        routing = torch.cat([self.cross_band(bands.bands_BKCHW), bands.guidance_BGHW], dim=1)
        sr_BECHW = self.collaboration(sr_BECHW, feats)
        fused = 0.7 * self.hierarchy(sr_BECHW) + 0.3 * self.routed(sr_BECHW, routing)
        fused = self.select(lr_BCHW, sr_BECHW, fused)
        fused = fused + 0.1 * self.refine(fused)
        pyramid = laplacians(fused, 3)
        fused = fused + 0.15 * sum(
            (net(band) + band for net, band in zip(self.edges, pyramid, strict=True)), torch.zeros_like(fused)
        )
        return fused + self.residual_scale * F.interpolate(lr_BCHW, scale_factor=4, mode="bilinear")

    def hierarchy(self, sr_BECHW: Tensor) -> Tensor:
        """Phase 5 at 1x, 2x and 4x."""
        images = sr_BECHW.flatten(1, 2)
        fused = None
        for level, shrink in zip(self.levels, (4, 2, 1), strict=True):
            small = F.avg_pool2d(images, shrink) if shrink > 1 else images
            if fused is None:
                fused = level(small)
            else:
                fused = F.interpolate(fused, scale_factor=2, mode="bilinear")
                fused = fused + level(torch.cat([small, fused], dim=1))
        assert fused is not None
        return fused

    def routed(self, sr_BECHW: Tensor, routing: Tensor) -> Tensor:
        """Softmax weights at HR size from the enhanced bands."""
        weights = self.routing(F.interpolate(routing, scale_factor=4, mode="bilinear")).softmax(dim=1)
        return (weights.unsqueeze(2) * sr_BECHW).sum(dim=1)

    def select(self, lr_BCHW: Tensor, sr_BECHW: Tensor, fused: Tensor) -> Tensor:
        """Phase 6."""
        difficulty = self.difficulty(lr_BCHW)
        gates = torch.sigmoid(self.temperature * (self.gates(lr_BCHW) - (0.7 - 0.5 * difficulty)))
        gates = F.interpolate(gates / (gates.sum(dim=1, keepdim=True) + 1e-8), scale_factor=4, mode="bilinear")
        blend = 0.3 + 0.4 * F.interpolate(difficulty, scale_factor=4, mode="bilinear")
        return (1 - blend) * fused + blend * (gates.unsqueeze(2) * sr_BECHW).sum(dim=1)


def original_of_size(channels: Sequence[int], parameters: int) -> OriginalFusion:
    """The original layout with the refinement width that brings it nearest to `parameters`."""

    def count(width: int) -> int:
        return sum(p.numel() for p in OriginalFusion(channels, width).parameters())

    with torch.device("meta"):  # parameters are only counted: none is allocated
        above = bisect_left(_REFINE_WIDTHS, parameters, key=count)
        near = _REFINE_WIDTHS[max(above - 1, 0) : above + 1]  # a wider one has more
        best = min(near, key=lambda width: abs(count(width) - parameters))
    return OriginalFusion(channels, best)
