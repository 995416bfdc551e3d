"""Settings and a network -> its optimizer and the learning rate of every step.

AdamW for all, or Muon for the weights of convolutions and linear layers. Muon (K. Jordan, 2024; torch.optim.Muon) takes
a weight's momentum as a matrix and steps along its orthogonal part, so that all its directions are updated alike.
Measured here: docs/results/fusion-experiments.md. The learning rate is a pure function of the step: linear warm-up,
then cosine cycles with warm restarts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from fusion.training.settings import OptimizerSettings, ScheduleSettings


def learning_rate(step: int, steps: int, peak: float, settings: ScheduleSettings) -> float:
    """The rate for step 0..steps-1; each cycle starts at `peak` and ends at `peak * floor`."""
    warmup = min(settings.warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    position, length = _in_cycle(step - warmup, steps - warmup, settings)
    falling = 0.5 * (1 + math.cos(math.pi * position / length))
    return peak * (settings.floor + (1 - settings.floor) * falling)


def _in_cycle(step: int, steps: int, settings: ScheduleSettings) -> tuple[float, float]:
    """How far into its cycle a step is, and how long that cycle lasts."""
    sizes = [settings.growth**index for index in range(settings.cycles)]
    start = 0.0
    for size in sizes[:-1]:
        length = steps * size / sum(sizes)
        if step < start + length:
            return step - start, length
        start += length
    return step - start, max(steps - start, 1.0)


SMALLEST = 32  # rows and columns at least: thinner weights are left to AdamW


def new_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """For the parameters that learn, in the memory format they will keep."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if not learning:
        cure = "switch a phase on, or fit the base alone by `python -m fusion fit-base CACHE --out FILE`"
        raise Refusal("the network has no parameters to train", where="network.settings", cure=cure)
    kind = torch.optim.AdamW if settings.name == "adamw" else MuonAndAdamW
    return kind(learning, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


class MuonAndAdamW(torch.optim.AdamW):
    """Muon on matrices, AdamW on the rest; Muon's steps are scaled to AdamW's size, so one learning rate fits both."""

    def __init__(self, parameters: list[nn.Parameter], *, lr: float, weight_decay: float, **options: Any) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, **options)
        self._matrices = [parameter for parameter in parameters if is_matrix(parameter)]
        if not self._matrices:
            what = f"muon needs matrices: no weight has {SMALLEST} outputs and inputs"
            raise Refusal(what, where="optimizer.name", cure="set it to adamw")
        self._channels_last = [is_channels_last(matrix) for matrix in self._matrices]
        views = zip(self._matrices, self._channels_last, strict=True)
        # Views of the same memory: torch.optim.Muon takes two-dimensional parameters only.
        self._views = [nn.Parameter(as_matrix(matrix.detach(), last)) for matrix, last in views]
        self._muon = torch.optim.Muon(self._views, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Matrices first; without a gradient AdamW leaves them alone."""
        self._muon.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        for matrix, view, last in zip(self._matrices, self._views, self._channels_last, strict=True):
            view.grad = None if matrix.grad is None else as_matrix(matrix.grad, last)
            matrix.grad = None
        self._muon.step()
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers' states."""
        return {"adamw": super().state_dict(), "muon": self._muon.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Both optimizers' states."""
        super().load_state_dict(state_dict["adamw"])
        self._muon.load_state_dict(state_dict["muon"])


def is_matrix(weight: Tensor) -> bool:
    """A linear layer's or an ungrouped convolution's weight with enough outputs and inputs."""
    return weight.ndim in {2, 4} and min(weight.shape[0], weight[0].numel()) >= SMALLEST and weight.shape[1] > 1


def is_channels_last(weight: Tensor) -> bool:
    """Whether a convolution's weight lies in memory with its inputs innermost."""
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)


def as_matrix(weight: Tensor, channels_last: bool) -> Tensor:
    """(outputs, inputs, kernel...) -> (outputs, all else), for a weight that lies so in memory a view of it."""
    return (weight.permute(0, 2, 3, 1) if channels_last else weight).flatten(1)
