"""Experts' features by name -> one map: each channel on a common scale, through a 1x1 per expert, summed.

Axes: B batch, C an expert's feature channels, D width, H and W of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusion.network.parts import at_least_float32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion.network.evidence import Evidence
    from fusion.network.settings import FusionSettings


class Standardize(nn.Module):
    """Fixed mean and spread per channel, measured once on training data.

    A norm at every pixel would level what is faint with what is strong, and strength is what a detail is made of.
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
    """Reads whatever features there are; experts that are absent or have none say nothing."""

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
            else:  # distributed training wants a gradient for every parameter
                total = total + sum(0 * parameter.sum() for parameter in layers.parameters())
        return total


def _key(index: int) -> str:
    """Experts' names may hold dots, which a module's may not."""
    return str(index)
