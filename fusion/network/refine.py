"""Phase 7a. The image so far, unshuffled, and the context -> a residual that sharpens and cannot brighten.

Six layers, all at LR size or half of it, on 48 channels that are a 4x4 square of HR pixels.
Axes: B batch, Q = 48 unshuffled channels, D width, H and W of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.parts import UNSHUFFLED, at_least_float32, zero_mean_per_pixel, zero_start

if TYPE_CHECKING:
    from fusion.network.settings import FusionSettings


class Refinement(nn.Module):
    """In, down, two layers at half size, up and join, out: depth and width of the seed's at a fraction of the cost."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        width = settings.refine.width
        self.read = nn.Conv2d(2 * UNSHUFFLED + settings.context_width, width, 1)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(width, width, 3, padding=1)
        self.deeper = nn.Conv2d(width, width, 3, padding=1)
        self.join = nn.Conv2d(width, width, 3, padding=1)
        self.out = zero_start(nn.Conv2d(width, UNSHUFFLED, 3, padding=1))
        self.scale = nn.Parameter(torch.tensor(settings.refine.scale))

    def forward(self, detail_BQHW: Tensor, change_BQHW: Tensor, context_BDHW: Tensor) -> Tensor:
        """What the base adds to the LR, what phases 4 to 6 added, the context -> residual (B, Q, H, W)."""
        x_BDHW = F.gelu(self.read(torch.cat([detail_BQHW, change_BQHW, context_BDHW.to(detail_BQHW.dtype)], dim=1)))
        y = F.gelu(self.down(x_BDHW))
        y = y + F.gelu(self.deep(y))
        y = y + F.gelu(self.deeper(y))
        height, width = x_BDHW.shape[-2:]
        up_BDHW = y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[..., :height, :width]
        x_BDHW = x_BDHW + F.gelu(self.join(x_BDHW + up_BDHW))
        return self.scale * zero_mean_per_pixel(at_least_float32(self.out(x_BDHW)))
