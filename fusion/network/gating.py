"""Phase 6. Evidence, context and tokens -> the difficulty of each pixel, and the change of its weights from the base's.

The weights move in affine space, base + zero-sum change: base weights may be negative, and 0 and 1 can be reached.
Axes: B batch, E experts present, D width, S sub-pixels, H and W of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.parts import zero_start, zero_sum

if TYPE_CHECKING:
    from fusion.network.evidence import Evidence
    from fusion.network.settings import FusionSettings

_EASY, _HARDER = 0.3, 0.4  # a change is multiplied by 0.3 where difficulty is 0 and by 0.7 where it is 1


class Difficulty(nn.Module):
    """LR image and the experts' disagreement -> difficulty in (0, 1) at every LR pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(6, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, evidence: Evidence) -> Tensor:
        """Evidence -> (B, 1, H, W)."""
        disagreement_BCHW = evidence.spread_BQHW.unflatten(1, (3, -1)).mean(dim=2)
        return self.net(torch.cat([evidence.lr_BCHW, disagreement_BCHW], dim=1))


class DynamicGates(nn.Module):
    """Per expert: its differences, its token and its identity, with the context -> its raw gate."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        width = settings.gating.width
        self.difficulty = Difficulty(width)
        self.from_difference = nn.Conv2d(settings.unshuffled, width, 1)
        self.from_context = nn.Conv2d(settings.context_width, width, 1, bias=False)
        collaborates = settings.collaboration.enabled
        self.from_token = nn.Conv2d(settings.collaboration.width, width, 1, bias=False) if collaborates else None
        self.identity_ED = nn.Parameter(0.02 * torch.randn(len(settings.experts), width))
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.raw = zero_start(nn.Conv2d(width, settings.subpixels, 1))
        self.temperature = nn.Parameter(torch.tensor(settings.gating.temperature))

    def forward(self, evidence: Evidence, context_BDHW: Tensor, tokens_BEDHW: Tensor | None) -> tuple[Tensor, Tensor]:
        """Evidence, context, phase 4's tokens if on -> weights' change (B, E, S, H, W), difficulty (B, 1, H, W)."""
        batch = context_BDHW.shape[0]
        hidden = self.from_difference(evidence.seen_BEQHW.flatten(0, 1))
        if self.from_token is not None and tokens_BEDHW is not None:
            hidden = hidden + self.from_token(tokens_BEDHW.flatten(0, 1))
        identity_ED = torch.stack([self.identity_ED[index] for index in evidence.indices])
        hidden_BEDHW = hidden.unflatten(0, (batch, -1)) + self.from_context(context_BDHW).unsqueeze(1)
        hidden = F.gelu(hidden_BEDHW + identity_ED[:, :, None, None]).flatten(0, 1)
        raw_BESHW = self.raw(F.gelu(self.near(hidden))).unflatten(0, (batch, -1))
        difficulty_B1HW = self.difficulty(evidence)
        strength_B11HW = self.temperature * (_EASY + _HARDER * difficulty_B1HW).unsqueeze(1)
        return strength_B11HW * zero_sum(raw_BESHW), difficulty_B1HW
