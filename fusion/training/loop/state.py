"""The whole training state: network, optimizer, moving average, scaler, counters.

The exponential moving average of the weights is what is validated and exported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel

from fusion.training.loop.optimizers import new_optimizer
from fusion.training.losses.adversary import new_adversary

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from fusion.training.loop.checkpoint import Ranked
    from fusion.training.losses.adversary import Adversary
    from fusion.training.settings import TrainSettings
    from fusion.training.tasks.task import Task


def decay_at(updates: int, decay: float) -> float:
    """A short memory at first: with `decay` from the start, untrained weights would count for thousands of steps."""
    return min(decay, (1 + updates) / (10 + updates))


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network that follows it; its first update is a plain copy. Decay 0 always copies."""

    @torch.no_grad()
    def follow(average: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        share = 1 - decay_at(int(updates), decay)
        torch._foreach_lerp_(average, current, share)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage] (as torch.optim)

    average = AveragedModel(network, multi_avg_fn=follow)  # pyright: ignore[reportArgumentType] (tuples or lists)
    average.requires_grad_(False)
    average.eval()
    return average


@dataclass
class TrainingState:
    """`network` is the bare module; `wrapped` is what the forward goes through (DDP with several processes)."""

    network: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel
    scaler: GradScaler
    step: int = 0
    skipped: int = 0
    best: Ranked = field(default_factory=list)
    adversary: Adversary | None = None

    def to_dict(self) -> dict[str, Any]:
        """A checkpoint's content. No generator's state: every random draw is a function of seed and step."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
            "best": [list(entry) for entry in self.best],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over a checkpoint's state."""
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average.load_state_dict(saved["average"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step = int(saved["step"])
        self.skipped = int(saved["skipped"])
        if self.adversary is not None:
            self.adversary.load_state_dict(saved["adversary"])
        self.best = [(float(psnr), int(step)) for psnr, step in saved["best"]]


def new_state(task: Task, settings: TrainSettings, accelerator: Accelerator) -> TrainingState:
    """The state before the first step."""
    network = task.network
    network.to(accelerator.device)
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stub lacks it)
    return state_of(network, settings, accelerator)


def state_of(network: nn.Module, settings: TrainSettings, accelerator: Accelerator) -> TrainingState:
    """The same of a network that is on its device."""
    average = averaged(network, settings.ema)
    optimizer = new_optimizer(network.parameters(), settings.optimizer)
    scaler = GradScaler(accelerator.device.type, enabled=settings.precision == "fp16")
    wrapped = accelerator.prepare_model(network) if accelerator.num_processes > 1 else network
    adversary = new_adversary(settings, accelerator.device)
    return TrainingState(network, wrapped, optimizer, average, scaler, adversary=adversary)
