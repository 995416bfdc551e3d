"""Phase 7a. The image so far, unshuffled, and the context -> a residual that sharpens and cannot brighten.

Six layers and as many residual blocks as wanted, all at LR size or half of it, on 48 channels that are a 4x4 square of
HR pixels. Given the experts' features itself, it is a second network that super-resolves on top of theirs.
Axes: B batch, Q = 48 unshuffled channels, D width, H and W of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.features import FeatureSum
from fusion.network.parts import (
    UNSHUFFLED,
    ExpertConv,
    ResidualBlock,
    at_least_float32,
    zero_mean_per_pixel,
    zero_start,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion.network.evidence import Evidence
    from fusion.network.settings import FusionSettings


class Refinement(nn.Module):
    """In, down, two layers at half size, up and join, blocks, out: the seed's depth at a fraction of the cost."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        width = settings.refine.width
        self.read = nn.Conv2d(2 * UNSHUFFLED + settings.context_width, width, 1)
        direct = settings.refine.direct
        self.differences = ExpertConv(len(settings.experts), UNSHUFFLED, width) if direct else None
        self.features = FeatureSum(settings, width) if direct else None
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(width, width, 3, padding=1)
        self.deeper = nn.Conv2d(width, width, 3, padding=1)
        self.join = nn.Conv2d(width, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(settings.refine.blocks)))
        self.out = zero_start(nn.Conv2d(width, UNSHUFFLED, 3, padding=1))
        self.scale = nn.Parameter(torch.tensor(settings.refine.scale))

    def forward(
        self, evidence: Evidence, change_BQHW: Tensor, context_BDHW: Tensor, feats: Mapping[str, Tensor]
    ) -> Tensor:
        """The evidence, what phases 4 to 6 added, the context, features by name -> residual (B, Q, H, W)."""
        x_BDHW = self.take_in(evidence, change_BQHW, context_BDHW, feats)
        x_BDHW = x_BDHW + F.gelu(self.join(x_BDHW + self.look_around(x_BDHW)))
        x_BDHW = self.blocks(x_BDHW)
        return self.scale * zero_mean_per_pixel(at_least_float32(self.out(x_BDHW)))

    def take_in(
        self, evidence: Evidence, change_BQHW: Tensor, context_BDHW: Tensor, feats: Mapping[str, Tensor]
    ) -> Tensor:
        """All that is known of a pixel -> (B, D, H, W)."""
        detail_BQHW = evidence.detail()
        x_BDHW = self.read(torch.cat([detail_BQHW, change_BQHW, context_BDHW.to(detail_BQHW.dtype)], dim=1))
        if self.differences is not None and self.features is not None:
            x_BDHW = x_BDHW + self.differences(evidence.seen_BEQHW, evidence.indices)
            x_BDHW = x_BDHW + self.features(evidence, feats)
        return x_BDHW

    def look_around(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> the same, seen at half size."""
        y = F.gelu(self.down(x_BDHW))
        y = y + F.gelu(self.deep(y))
        y = y + F.gelu(self.deeper(y))
        height, width = x_BDHW.shape[-2:]
        return y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[..., :height, :width]
