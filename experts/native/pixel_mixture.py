"""Feature map -> feature map, each pixel through its best few of several gated pointwise experts.

The 3x3 convolution that gathers a pixel's neighbourhood is shared; what is made of it is routed pixel by pixel.
Legend: B batch, C channels, H and W height and width, T tokens (B*H*W), E experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from experts.native.mixture import Mixture, Routing
from experts.native.norm import ChannelNorm

if TYPE_CHECKING:
    from torch import Tensor


class PointwiseExpert(nn.Module):
    """GELU of one half times the other, per token."""

    def __init__(self, channels: int, ratio: float, out_channels: int | None = None) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.widen = nn.Linear(channels, 2 * hidden)
        self.narrow = nn.Linear(hidden, out_channels or channels)

    def forward(self, tokens_TC: Tensor) -> Tensor:
        """(T, C) -> (T, C)."""
        gate, value = self.widen(tokens_TC).chunk(2, dim=-1)
        return self.narrow(F.gelu(gate) * value)


class PixelMixture(nn.Module):
    """Norm, 3x3 per channel, route, add."""

    def __init__(
        self,
        channels: int,
        *,
        experts: int = 4,
        top_k: int = 2,
        routing: Routing = "sparse",
        ratio: float = 1.0,
        freeze_routing: bool = False,
    ) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.router = make_router(channels, experts, routing, frozen=freeze_routing)
        self.mixture = Mixture((PointwiseExpert(channels, ratio) for _ in range(experts)), top_k=top_k, routing=routing)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, C, H, W) and the balance."""
        normed_BCHW = self.norm(x_BCHW)
        tokens_BHWC = self.depthwise(normed_BCHW).permute(0, 2, 3, 1)
        tokens_TC = tokens_BHWC.reshape(-1, tokens_BHWC.shape[-1])
        logits_TE = None
        if self.router is not None:
            logits_TE = self.router(normed_BCHW.permute(0, 2, 3, 1).reshape(tokens_TC.shape))
        mixed_TC, balance = self.mixture(tokens_TC, logits_TE)
        return x_BCHW + mixed_TC.view(tokens_BHWC.shape).permute(0, 3, 1, 2), balance


def make_router(channels: int, experts: int, routing: Routing, *, frozen: bool) -> nn.Linear | None:
    """Scores for the experts; none where nothing is routed. A frozen one keeps its random choices while experts
    settle: train so first, then go on from that file with routing free."""
    if routing == "single":
        return None
    return nn.Linear(channels, experts).requires_grad_(not frozen)
