"""Phase 7a. The image so far, unshuffled, the context and the experts' features -> a zero-mean residual that sharpens.

Six layers and as many residual blocks as wanted, all at LR size or half of it, on channels that are an LR pixel's
square of HR pixels. Given the experts' features itself, it is a second network that super-resolves on top of theirs.
Axes: B batch, C an expert's feature channels, Q unshuffled channels, D width, H and W of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.parts import ExpertConv, ResidualBlock, zero_mean_per_pixel, zero_start
from imaging.layers import at_least_float32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion.network.evidence import Evidence
    from fusion.network.settings import FusionSettings


class Standardize(nn.Module):
    """Fixed mean and spread per channel, measured once on training data.

    A norm at every pixel would remove the amplitude of details, which is information: it would equalize weak and strong
    ones.
    """

    mean_C: Tensor
    spread_C: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("spread_C", torch.ones(channels))

    def forward(self, feat_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> the same in float32, each channel of mean 0 and spread 1 over the training data."""
        centred_BCHW = at_least_float32(feat_BCHW) - self.mean_C[:, None, None]
        return centred_BCHW / self.spread_C[:, None, None]


class FeatureSum(nn.Module):
    """Sum of the projected features; the terms of experts that are absent or have none are zero."""

    def __init__(self, settings: FusionSettings, width: int) -> None:
        super().__init__()
        self.project = nn.ModuleDict(
            {
                _key(settings.index_of(name)): nn.Sequential(Standardize(channels), nn.Conv2d(channels, width, 1))
                for name in settings.names
                if (channels := settings.channels_of(name))
            }
        )
        self.names = settings.names

    def set_moments(self, moments: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Adopt the mean and spread (C) of each named expert's channels."""
        for index, name in enumerate(self.names):
            if _key(index) in self.project and name in moments:
                standardize = self.project[_key(index)].get_submodule("0")
                standardize.load_state_dict(dict(zip(("mean_C", "spread_C"), moments[name], strict=True)))

    def forward(self, evidence: Evidence, feats: Mapping[str, Tensor]) -> Tensor | int:
        """Evidence and features by name -> (B, D, H, W), or 0 when no expert of the model has features."""
        total: Tensor | int = 0
        for index, name in enumerate(self.names):
            if _key(index) not in self.project:
                continue
            layers = self.project[_key(index)]
            if index in evidence.indices and name in feats:
                total = total + layers(feats[name].to(evidence.lr_BCHW.dtype))
            else:  # DDP needs a gradient for every parameter
                total = total + sum(0 * parameter.sum() for parameter in layers.parameters())
        return total


def _key(index: int) -> str:
    """Experts' names may hold dots, which a module's may not."""
    return str(index)


class Refinement(nn.Module):
    """In, down, two layers at half size, up and join, blocks, out: the original depth at a fraction of the cost."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        width = settings.refine.width
        self.read = nn.Conv2d(2 * settings.unshuffled + settings.context_width, width, 1)
        direct = settings.refine.direct
        self.differences = ExpertConv(len(settings.experts), settings.unshuffled, width) if direct else None
        self.features = FeatureSum(settings, width) if direct else None
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(width, width, 3, padding=1)
        self.deeper = nn.Conv2d(width, width, 3, padding=1)
        self.join = nn.Conv2d(width, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(settings.refine.blocks)))
        self.out = zero_start(nn.Conv2d(width, settings.unshuffled, 3, padding=1))
        self.scale = nn.Parameter(torch.tensor(settings.refine.scale))

    def forward(
        self, evidence: Evidence, change_BQHW: Tensor, context_BDHW: Tensor, feats: Mapping[str, Tensor]
    ) -> Tensor:
        """The evidence, the sum of phases 4 to 6, the context, features by name -> residual (B, Q, H, W)."""
        x_BDHW = self.read_inputs(evidence, change_BQHW, context_BDHW, feats)
        x_BDHW = x_BDHW + F.gelu(self.join(x_BDHW + self.half_size(x_BDHW)))
        x_BDHW = self.blocks(x_BDHW)
        return self.scale * zero_mean_per_pixel(at_least_float32(self.out(x_BDHW)))

    def read_inputs(
        self, evidence: Evidence, change_BQHW: Tensor, context_BDHW: Tensor, feats: Mapping[str, Tensor]
    ) -> Tensor:
        """The first layer: all inputs of a pixel -> (B, D, H, W)."""
        detail_BQHW = evidence.detail()
        x_BDHW = self.read(torch.cat([detail_BQHW, change_BQHW, context_BDHW.to(detail_BQHW.dtype)], dim=1))
        if self.differences is not None and self.features is not None:
            x_BDHW = x_BDHW + self.differences(evidence.seen_BEQHW, evidence.indices)
            x_BDHW = x_BDHW + self.features(evidence, feats)
        return x_BDHW

    def half_size(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> the same shape, through two layers at half size."""
        y = F.gelu(self.down(x_BDHW))
        y = y + F.gelu(self.deep(y))
        y = y + F.gelu(self.deeper(y))
        height, width = x_BDHW.shape[-2:]
        # Nearest neighbour, cut to size where a side is odd.
        return y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[..., :height, :width]
