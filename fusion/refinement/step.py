"""Latents and what the model predicts of them -> clean latents, in one step; and one call of the model.

Every one-step update is affine: clean = keep * latents + take * prediction. Axes: B batch (1), C channels, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from fusion.refinement.presets import Preset


@dataclass(frozen=True)
class Update:
    """The two numbers of a one-step update."""

    keep: float
    take: float

    def __call__(self, latent: Tensor, prediction: Tensor) -> Tensor:
        """Both of any shape -> clean latents."""
        return self.keep * latent + self.take * prediction


def update_of(preset: Preset, folder: Path) -> Update:
    """Flow: from noise level 1 to 0 along the velocity. DDPM: x0 by the schedule in the base's folder."""
    if preset.update == "flow":
        return Update(1.0, -1.0)
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    schedule: Any = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    steps, kind = len(schedule.alphas_cumprod), schedule.config["prediction_type"]
    where, cure = folder / "scheduler" / "scheduler_config.json", f"take the base from {preset.page}"
    if int(preset.timestep) >= steps:
        raise Refusal(f"has {steps} steps, step {preset.timestep:.0f} is needed", where=where, cure=cure)
    kept = float(schedule.alphas_cumprod[int(preset.timestep)])
    signal, noise = kept**0.5, (1 - kept) ** 0.5
    if kind == "epsilon":
        return Update(1 / signal, -noise / signal)
    if kind == "v_prediction":
        return Update(signal, -noise)
    if kind == "sample":
        return Update(0.0, 1.0)
    raise Refusal(f"predicts '{kind}', which no one-step refiner does", where=where, cure=cure)


def predict(model: Any, latent_BCHW: Tensor, timestep: float, conditions: Mapping[str, Tensor]) -> Tensor:
    """One call of the model."""
    when = torch.tensor([timestep], device=latent_BCHW.device)
    return model(latent_BCHW, timestep=when, return_dict=False, **conditions)[0]
