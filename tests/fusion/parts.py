"""Small fusion networks, random batches and the real experts' regions, for the tests of the fusion room."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fusion.network import BaseRecord, ExpertSlot, FusionSettings, FusionSR
from fusion.network.base.blend import WHOLE
from fusion.network.settings import (
    BandsSettings,
    CollaborationSettings,
    CrossBandSettings,
    EdgesSettings,
    GatingSettings,
    HierarchySettings,
    RefineSettings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

REAL_EXPERTS = ("hitsr", "mambairv2light", "eagle", "sepsr")
SLOTS = (ExpertSlot(name="a", channels=6), ExpertSlot(name="b", channels=4), ExpertSlot(name="c", channels=0))
NAMES = tuple(slot.name for slot in SLOTS)
PHASES = ("bands", "cross_band", "collaboration", "hierarchy", "gating", "refine", "edges")


def small_settings(slots: Sequence[ExpertSlot] = SLOTS, **changes: Any) -> FusionSettings:
    """Every phase, narrow; three experts of which one has no features."""
    narrow: dict[str, Any] = {
        "context_width": 8,
        "bands": BandsSettings(),
        "cross_band": CrossBandSettings(width=8, inner=8, heads=2, expansion=2),
        "collaboration": CollaborationSettings(width=8, inner=8, heads=2),
        "hierarchy": HierarchySettings(width=8),
        "gating": GatingSettings(width=8),
        "refine": RefineSettings(width=8, blocks=1),
        "edges": EdgesSettings(width=8, levels=2),
    }
    return FusionSettings(experts=tuple(slots), **(narrow | changes))


def without(*phases: str) -> dict[str, Any]:
    """Settings changes that switch phases off."""
    kinds = {
        "bands": BandsSettings,
        "cross_band": CrossBandSettings,
        "collaboration": CollaborationSettings,
        "hierarchy": HierarchySettings,
        "gating": GatingSettings,
        "refine": RefineSettings,
        "edges": EdgesSettings,
    }
    return {phase: kinds[phase](enabled=False) for phase in phases}


def small_model(seed: int = 0, base: BaseRecord | None = None, **changes: Any) -> FusionSR:
    """A narrow network, seeded."""
    torch.manual_seed(seed)
    return FusionSR(small_settings(**changes), base)


def random_record(
    names: Sequence[str], seed: int = 0, groups: tuple[tuple[int, ...], ...] = WHOLE, pull: float = 0.0
) -> BaseRecord:
    """A base as if fitted: a random positive definite Gram matrix."""
    side = 3 * len(names)
    factor = np.random.default_rng(seed).normal(size=(side, 2 * side))
    gram = tuple(map(tuple, (factor @ factor.T / side).tolist()))
    return BaseRecord(experts=tuple(names), gram=gram, groups=groups, back_projection=pull, items=7, source="noise")


def batch_for(
    settings: FusionSettings, height: int = 12, width: int = 10, batch: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """LR images, experts' images that differ by a few grey levels, features."""
    generator = torch.Generator().manual_seed(seed)
    lr_BCHW = torch.rand(batch, 3, height, width, generator=generator)
    common = torch.nn.functional.interpolate(lr_BCHW, scale_factor=4, mode="bilinear").unsqueeze(1)
    experts = len(settings.experts)
    noise = 0.03 * torch.randn(batch, experts, 3, 4 * height, 4 * width, generator=generator)
    sr_BECHW = (common + noise).clamp(0, 1)
    feats: dict[str, Tensor | None] = {
        slot.name: torch.randn(batch, slot.channels, height, width, generator=generator)
        for slot in settings.experts
        if slot.channels
    }
    return lr_BCHW, sr_BECHW, feats


def stir(model: FusionSR, scale: float = 0.05, seed: int = 1) -> FusionSR:
    """Move every parameter away from where it starts, so that every phase says something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def real_regions(
    shared_data: Path, count: int | None = None, every: int = 1
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The real experts' training regions, uint8: (lr_CHW, sr_ECHW, hr_CHW)."""
    folder = shared_data / "real_experts" / "train"
    if not (folder / "regions.csv").is_file():
        pytest.skip("the real experts' outputs are not beside the checkout")
    with (folder / "regions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:count:every]:
        left, top, size = int(row["left"]), int(row["top"]), int(row["size"])
        region = (left, top, left + size, top + size)
        hr_CHW = _pixels(shared_data / row["source"], region)
        images = [_pixels(folder / name / f"{row['name']}x4.webp") for name in REAL_EXPERTS]
        yield _pixels(folder / "LRx4" / f"{row['name']}x4.webp"), torch.stack(images), hr_CHW


def _pixels(path: Path, region: tuple[int, int, int, int] | None = None) -> Tensor:
    if not path.is_file():
        path = path.with_suffix(".png")
    image = Image.open(path).convert("RGB")
    return torch.from_numpy(np.asarray(image.crop(region) if region else image).copy()).permute(2, 0, 1)
