"""What phases 2 to 4 found -> one context map (B, D, H, W) that phases 5 to 7 listen to.

Axes: B batch, D width, H and W of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.bands import GUIDANCE
from fusion.network.parts import UNSHUFFLED

if TYPE_CHECKING:
    from fusion.network.bands import Bands
    from fusion.network.collaboration import Collaboration
    from fusion.network.evidence import Evidence
    from fusion.network.settings import FusionSettings


class Context(nn.Module):
    """LR image, experts' spread, guidance, routing and consensus, as far as their phases are on, mixed by a 1x1."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        channels = 3 + UNSHUFFLED
        channels += GUIDANCE if settings.has_bands else 0
        channels += settings.cross_band.width if settings.has_cross_band else 0
        channels += settings.collaboration.width if settings.collaboration.enabled else 0
        self.mix = nn.Conv2d(channels, settings.context_width, 1)

    def forward(
        self, evidence: Evidence, bands: Bands | None, routing_BDHW: Tensor | None, shared: Collaboration | None
    ) -> Tensor:
        """Whatever there is -> (B, D, H, W)."""
        parts = [evidence.lr_BCHW, evidence.spread_BQHW]
        parts += [bands.guidance_BGHW] if bands is not None else []
        parts += [routing_BDHW] if routing_BDHW is not None else []
        parts += [shared.consensus_BDHW] if shared is not None else []
        return F.gelu(self.mix(torch.cat([part.to(evidence.lr_BCHW.dtype) for part in parts], dim=1)))
