"""Phase 4. Experts' features and differences -> tokens, a consensus, and a zero-sum modulation of the experts.

Every expert's token is made of its image's difference from the base and, where it has features, of those. Absent
experts have no token at all. Axes: B batch, E experts present, D width, Q unshuffled channels, S sub-pixels,
C an expert's feature channels, H and W of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.attention import LKABlock, TokenAttention
from fusion.network.evidence import Collaboration
from fusion.network.parts import channel_norm, zero_start, zero_sum

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion.network.evidence import Evidence
    from fusion.network.settings import FusionSettings

_HIDDEN = 32


class ExpertTokens(nn.Module):
    """Features by a 1x1 of the expert's own, plus differences by a shared 1x1, plus a learned identity."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        width = settings.collaboration.width
        self.names = settings.names
        self.project = nn.ModuleList(
            nn.Conv2d(settings.channels_of(name), width, 1) if settings.channels_of(name) else nn.Identity()
            for name in self.names
        )
        self.reads_features = tuple(settings.channels_of(name) > 0 for name in self.names)
        self.norm = channel_norm(width)
        self.difference = nn.Conv2d(settings.unshuffled, width, 1)
        self.identity_ED = nn.Parameter(0.02 * torch.randn(len(self.names), width))

    def forward(self, evidence: Evidence, feats: Mapping[str, Tensor]) -> Tensor:
        """Evidence and features by name -> (B, E, D, H, W)."""
        return torch.stack([self._token(evidence, feats, place) for place in range(len(evidence.indices))], dim=1)

    def _token(self, evidence: Evidence, feats: Mapping[str, Tensor], place: int) -> Tensor:
        index = evidence.indices[place]
        token_BDHW = self.difference(evidence.seen_BEQHW[:, place])
        feat_BCHW = feats.get(self.names[index])
        if self.reads_features[index] and feat_BCHW is not None:
            token_BDHW = token_BDHW + self.project[index](feat_BCHW.to(evidence.lr_BCHW.dtype))
        return self.norm(token_BDHW) + self.identity_ED[index][:, None, None]

    def unused(self, evidence: Evidence, feats: Mapping[str, Tensor]) -> Tensor:
        """Zero times the projections this batch did not use: DDP needs a gradient for each."""
        zero = self.identity_ED.new_zeros(())
        for index, (name, layer) in enumerate(zip(self.names, self.project, strict=True)):
            if index not in evidence.indices or name not in feats:
                zero = zero + sum((0 * parameter.sum() for parameter in layer.parameters()), zero)
        return zero


class CollaborativeFeatures(nn.Module):
    """Experts attend to each other at every pixel; their mean, refined over a large neighbourhood, is the consensus."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        own = settings.collaboration
        self.strength = own.strength
        self.tokens = ExpertTokens(settings)
        self.attention = TokenAttention(own.width, own.inner, own.heads)
        self.near = nn.Conv2d(own.width, own.width, 3, padding=1, groups=own.width)
        self.mix = nn.Conv2d(own.width, own.width, 1)
        self.lka = LKABlock(own.width, own.expansion)
        self.from_token = nn.Conv2d(own.width, _HIDDEN, 1)
        self.from_consensus = nn.Conv2d(own.width, _HIDDEN, 1, bias=False)
        self.modulation = zero_start(nn.Conv2d(_HIDDEN, settings.subpixels, 1))

    def forward(self, evidence: Evidence, feats: Mapping[str, Tensor]) -> Collaboration:
        """Evidence and features by name -> Collaboration."""
        tokens_BEDHW = self.tokens(evidence, feats)
        tokens_BEDHW = tokens_BEDHW + self.attention(tokens_BEDHW)
        consensus_BDHW = self.consensus(tokens_BEDHW)
        delta_BESHW = self.modulate(tokens_BEDHW, consensus_BDHW) + self.tokens.unused(evidence, feats)
        return Collaboration(tokens_BEDHW, consensus_BDHW, delta_BESHW)

    def consensus(self, tokens_BEDHW: Tensor) -> Tensor:
        """The experts' mean, refined by its neighbourhood, then by large-kernel attention."""
        mean_BDHW = tokens_BEDHW.mean(dim=1)
        return self.lka(mean_BDHW + self.mix(F.gelu(self.near(mean_BDHW))))

    def modulate(self, tokens_BEDHW: Tensor, consensus_BDHW: Tensor) -> Tensor:
        """Each token against the consensus -> changes of weight within +-2 strength, which cancel over the experts."""
        batch = tokens_BEDHW.shape[0]
        own = self.from_token(tokens_BEDHW.flatten(0, 1)).unflatten(0, (batch, -1))
        hidden = F.gelu(own + self.from_consensus(consensus_BDHW).unsqueeze(1))
        raw_BESHW = self.modulation(hidden.flatten(0, 1)).unflatten(0, (batch, -1))
        return self.strength * zero_sum(torch.tanh(raw_BESHW))
