"""Stages as data and the step of the run -> the weights of the losses in force, and their weighted sum."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusion.training.losses.registry import REPORTED, build_losses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusion.training.settings import Stage, TrainSettings

NOTHING_REPORTED: Mapping[str, Tensor] = MappingProxyType({})


def weights_at(step: int, steps: int, stages: Sequence[Stage]) -> dict[str, float]:
    """The losses of the stage that `step` falls into."""
    for stage in stages:
        if step < round(stage.until * steps):
            return stage.losses
    return stages[-1].losses


def loss_names(stages: Sequence[Stage]) -> list[str]:
    """Every loss that any stage names with a weight."""
    return sorted({name for stage in stages for name, weight in stage.losses.items() if weight > 0})


class WeightedLosses(nn.Module):
    """All losses of a curriculum; called with the current weights."""

    def __init__(self, losses: dict[str, nn.Module]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)

    def forward(
        self,
        sr_BCHW: Tensor,
        hr_BCHW: Tensor,
        weights: dict[str, float],
        reported: Mapping[str, Tensor] = NOTHING_REPORTED,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Images -> the weighted sum and each loss by itself, for the log."""
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=sr_BCHW.device)
        for name, weight in weights.items():
            if weight == 0:
                continue
            if name in REPORTED and name not in reported:
                raise ValueError(f"the curriculum weighs '{name}', but nothing reports it")
            value = reported[name] if name in REPORTED else self.losses[name](sr_BCHW, hr_BCHW)
            parts[name] = value.detach()
            total = total + weight * value
        return total, parts


def losses_of(settings: TrainSettings) -> WeightedLosses:
    """Every loss of a run's curriculum that compares images."""
    names = [name for name in loss_names(settings.stages) if name not in REPORTED]
    return WeightedLosses(build_losses(names, settings.weights))
