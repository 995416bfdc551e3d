"""The base and the experts' images -> the input of all later phases: images unshuffled to LR size, and one context map.

Axes: B batch, E experts present, C = 3 colours, D width, Q unshuffled channels, H and W of the LR image (times the
experts' scale for HR).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.bands.bands import GUIDANCE

if TYPE_CHECKING:
    from fusion.network.bands.bands import Bands
    from fusion.network.settings import FusionSettings

DIFFERENCE_GAIN = 10.0  # experts differ by a few grey levels of [0, 1]: brings them to the range of the other inputs


class Evidence(NamedTuple):
    """Inputs of the phases, all at LR size.

    lr_BCHW and base_BQHW in [0, 1]; diff_BEQHW = expert - base, unscaled, what weights multiply;
    seen_BEQHW = the same times DIFFERENCE_GAIN, what networks read; spread_BQHW its mean magnitude over experts;
    indices: the present experts' places in the model.
    """

    lr_BCHW: Tensor
    base_BQHW: Tensor
    diff_BEQHW: Tensor
    seen_BEQHW: Tensor
    spread_BQHW: Tensor
    indices: tuple[int, ...]

    def detail(self) -> Tensor:
        """(B, Q, H, W): what the base adds to the LR pixel under it, times the same gain: centred on zero."""
        return (self.base_BQHW - self.lr_BCHW.repeat_interleave(self.base_BQHW.shape[1] // 3, dim=1)) * DIFFERENCE_GAIN


class Collaboration(NamedTuple):
    """tokens_BEDHW and consensus_BDHW for later phases; delta_BESHW: zero-sum changes of the experts' weights."""

    tokens_BEDHW: Tensor
    consensus_BDHW: Tensor
    delta_BESHW: Tensor


def gather(lr_BCHW: Tensor, sr_BECHW: Tensor, base_BCHW: Tensor, indices: tuple[int, ...], scale: int) -> Evidence:
    """Unshuffle the base and the experts' differences from it."""
    diff_BEQHW = F.pixel_unshuffle(sr_BECHW - base_BCHW.unsqueeze(1), scale)
    seen_BEQHW = diff_BEQHW * DIFFERENCE_GAIN
    return Evidence(
        lr_BCHW=lr_BCHW,
        base_BQHW=F.pixel_unshuffle(base_BCHW, scale),
        diff_BEQHW=diff_BEQHW,
        seen_BEQHW=seen_BEQHW,
        spread_BQHW=seen_BEQHW.abs().mean(dim=1),
        indices=indices,
    )


class Context(nn.Module):
    """LR image, experts' spread, guidance, routing and consensus, as far as their phases are on, mixed by a 1x1."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        channels = 3 + settings.unshuffled
        channels += GUIDANCE if settings.has_bands else 0
        channels += settings.cross_band.width if settings.has_cross_band else 0
        channels += settings.collaboration.width if settings.collaboration.enabled else 0
        self.mix = nn.Conv2d(channels, settings.context_width, 1)

    def forward(
        self, evidence: Evidence, bands: Bands | None, routing_BDHW: Tensor | None, shared: Collaboration | None
    ) -> Tensor:
        """Evidence and the results of those phases that are on -> (B, D, H, W)."""
        parts = [evidence.lr_BCHW, evidence.spread_BQHW]
        parts += [bands.guidance_BGHW] if bands is not None else []
        parts += [routing_BDHW] if routing_BDHW is not None else []
        parts += [shared.consensus_BDHW] if shared is not None else []
        return F.gelu(self.mix(torch.cat([part.to(evidence.lr_BCHW.dtype) for part in parts], dim=1)))
