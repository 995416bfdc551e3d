"""Phase 5. Experts' differences at 1x, 2x and 4x LR size, and the context -> a progressive fusion, blended.

All scales (of 2x and 3x experts 1x and theirs) are computed at LR size: a scale of s pixels per LR pixel becomes s*s
channels. Each weighs the band of the differences that is new at its scale, and hands its features on. A second set of
weights, from the frequency-guided context alone, weighs whole differences.
Axes: B batch, E experts present, C = 3, s scale, S = s*s sub-pixels, Q unshuffled channels, D width, H and W of the LR
image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.parts import ExpertConv, ResidualBlock, pick, weigh, zero_start, zero_sum

if TYPE_CHECKING:
    from fusion.network.evidence import Evidence
    from fusion.network.settings import FusionSettings


def stages_of(scale: int) -> tuple[int, ...]:
    """From LR size up to the experts': every size that divides theirs."""
    return tuple(size for size in range(1, scale + 1) if scale % size == 0)


class Stage(nn.Module):
    """One scale: differences, context and the coarser stage's features -> features, and gated zero-sum weights."""

    def __init__(self, settings: FusionSettings, scale: int) -> None:
        super().__init__()
        width, experts = settings.hierarchy.width, len(settings.experts)
        self.scale = scale
        self.read = ExpertConv(experts, 3 * scale * scale, width)
        self.listen = nn.Conv2d(settings.context_width, width, 1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(settings.hierarchy.blocks)))
        self.gate = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, scale * scale, 3, padding=1),
            nn.Sigmoid(),
        )
        self.weights = zero_start(nn.Conv2d(width, experts * scale * scale, 3, padding=1))
        self.experts = experts

    def forward(
        self, seen_BEXHW: Tensor, context_BDHW: Tensor, coarser_BDHW: Tensor | None, indices: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Each expert's difference, X = 3 s s channels -> features (B, D, H, W), change of weights (B, E, S, H, W)."""
        x_BDHW = self.read(seen_BEXHW, indices) + self.listen(context_BDHW)
        if coarser_BDHW is not None:
            x_BDHW = x_BDHW + coarser_BDHW
        x_BDHW = self.blocks(x_BDHW)
        raw_BESHW = pick(self.weights(x_BDHW).unflatten(1, (self.experts, -1)), indices, dim=1)
        return x_BDHW, zero_sum(raw_BESHW) * self.gate(x_BDHW).unsqueeze(1)


class FrequencyGuide(nn.Module):
    """The context alone -> zero-sum weights per sub-pixel."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        width = settings.hierarchy.width
        self.experts = len(settings.experts)
        self.hidden = nn.Conv2d(settings.context_width, width, 1)
        self.weights = zero_start(nn.Conv2d(width, self.experts * settings.subpixels, 1))

    def forward(self, context_BDHW: Tensor, indices: tuple[int, ...]) -> Tensor:
        """(B, D, H, W) -> (B, E, S, H, W)."""
        raw_BXHW = self.weights(F.gelu(self.hidden(context_BDHW)))
        return zero_sum(pick(raw_BXHW.unflatten(1, (self.experts, -1)), indices, dim=1))


class HierarchicalFusion(nn.Module):
    """Coarse to fine, blended with the frequency-guided weights by a learned share that starts at 70/30."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        share = settings.hierarchy.blend
        self.scales = stages_of(settings.scale)
        self.stages = nn.ModuleList(Stage(settings, scale) for scale in self.scales)
        self.guide = FrequencyGuide(settings)
        self.share_logit = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self, evidence: Evidence, context_BDHW: Tensor) -> tuple[Tensor, Tensor]:
        """Evidence and context -> contribution (B, Q, H, W), and the weights' change (B, E, S, H, W) for the maps."""
        share = self.share_logit.sigmoid()
        fused_BQHW, delta_BESHW = self.progress(evidence, context_BDHW)
        guide_BESHW = self.guide(context_BDHW, evidence.indices)
        contribution_BQHW = share * fused_BQHW + (1 - share) * weigh(guide_BESHW, evidence.diff_BEQHW)
        return contribution_BQHW, share * delta_BESHW + (1 - share) * guide_BESHW

    def progress(self, evidence: Evidence, context_BDHW: Tensor) -> tuple[Tensor, Tensor]:
        """Stage after stage: each weighs the band its scale adds. The change reported for the maps is the finest one's
        plus the coarser ones', spread over their sub-pixels."""
        features, below = None, None
        fused_BQHW, total_BESHW = torch.zeros_like(evidence.base_BQHW), None
        for stage, scale in zip(self.stages, self.scales, strict=True):
            seen_BEXHW = shrink(evidence.seen_BEQHW, scale, self.scales[-1])
            features, delta_BESHW = stage(seen_BEXHW, context_BDHW, features, evidence.indices)
            level_BEQHW = spread(shrink(evidence.diff_BEQHW, scale, self.scales[-1]), scale, self.scales[-1])
            band_BEQHW = level_BEQHW if below is None else level_BEQHW - below
            fine_BESHW = spread(delta_BESHW, scale, self.scales[-1])
            fused_BQHW = fused_BQHW + weigh(fine_BESHW, band_BEQHW)
            total_BESHW = fine_BESHW if total_BESHW is None else total_BESHW + fine_BESHW
            below = level_BEQHW
        assert total_BESHW is not None
        return fused_BQHW, total_BESHW / len(self.scales)


def shrink(x_BEQHW: Tensor, scale: int, finest: int) -> Tensor:
    """Average unshuffled sub-pixels (finest x finest per LR pixel) to scale x scale of them."""
    if scale == finest:
        return x_BEQHW
    step = finest // scale
    cells = x_BEQHW.unflatten(2, (-1, scale, step, scale, step))
    return cells.mean(dim=(4, 6)).flatten(2, 4)


def spread(x_BEXHW: Tensor, scale: int, finest: int) -> Tensor:
    """Repeat scale x scale sub-pixels to finest x finest of them."""
    if scale == finest:
        return x_BEXHW
    step = finest // scale
    cells = x_BEXHW.unflatten(2, (-1, scale, 1, scale, 1))
    return cells.expand(-1, -1, -1, -1, step, -1, step, -1, -1).flatten(2, 6)
