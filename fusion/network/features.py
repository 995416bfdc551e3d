"""Experts' features by name -> one map: each expert's normed at every pixel, through a 1x1 of its own, summed.

Axes: B batch, D width, H and W of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from fusion.network.parts import ChannelNorm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion.network.evidence import Evidence
    from fusion.network.settings import FusionSettings


class FeatureSum(nn.Module):
    """Reads whatever features there are; experts that are absent or have none say nothing."""

    def __init__(self, settings: FusionSettings, width: int) -> None:
        super().__init__()
        self.project = nn.ModuleDict(
            {
                _key(settings.index_of(name)): nn.Sequential(ChannelNorm(channels), nn.Conv2d(channels, width, 1))
                for name in settings.names
                if (channels := settings.channels_of(name))
            }
        )
        self.names = settings.names

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
