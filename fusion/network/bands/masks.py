"""A position in [0, 1] per coefficient and two cuts per image -> low, mid and high masks that sum to one.

Axes: B batch, F coefficients of any shape.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class AdaptiveCuts(nn.Module):
    """Global statistics of an image -> two ordered cuts in (0, 1), which start at `start` for every image."""

    def __init__(self, start: tuple[float, float], hidden: int = 16) -> None:
        super().__init__()
        first, second = start
        self.hidden = nn.Linear(6, hidden)
        self.cuts = nn.Linear(hidden, 2)
        nn.init.normal_(self.cuts.weight, std=0.02)
        with torch.no_grad():
            self.cuts.bias.copy_(torch.tensor([_logit(first), _logit((second - first) / (1 - first))]))

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> lower and upper cut, each (B,); the upper lies in the rest above the lower."""
        mean_BC = image_BCHW.mean(dim=(2, 3))
        deviation_BC = (image_BCHW - mean_BC[:, :, None, None]).square().mean(dim=(2, 3)).add(1e-8).sqrt()
        statistics_B6 = torch.cat([mean_BC, 4 * deviation_BC], dim=1)
        lower_B, rest_B = self.cuts(torch.nn.functional.gelu(self.hidden(statistics_B6))).sigmoid().unbind(dim=1)
        return lower_B, lower_B + (1 - lower_B) * rest_B


def soft_masks(position_F: Tensor, cuts: tuple[Tensor, Tensor], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Low, mid and high masks (B, *F). Because the cuts are ordered, mid = 1 - low - high is never negative."""
    lower, upper = (cut.reshape(-1, *[1] * position_F.ndim) for cut in cuts)
    low = torch.sigmoid(temperature * (lower - position_F))
    high = torch.sigmoid(temperature * (position_F - upper))
    return low, 1 - low - high, high


def split(image: Tensor, low: Tensor, high: Tensor) -> Sequence[Tensor]:
    """Low, mid and high bands; mid is what the other two leave, so that the three sum to the image."""
    return low, image - low - high, high


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
