"""Predicted and true images -> a patch discriminator that learns to tell them apart, and its loss for the network.

Relativistic average GAN (Jolicoeur-Martineau 2018): an image is judged against the mean of the other kind.
Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from fusion.training.settings import AdversarialSettings, TrainSettings


class PatchDiscriminator(nn.Module):
    """Image (B,3,H,W) -> a realness per patch (B,1,H/8,W/8)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        widths = [3, features, features * 2, features * 4]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1)))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Higher is more real."""
        return self.layers(image_BCHW * 2 - 1)


class Adversary:
    """The discriminator, its optimizer, and the step from which they are used."""

    def __init__(self, settings: AdversarialSettings, first_step: int, device: torch.device) -> None:
        self._weight, self._first_step = settings.weight, first_step
        self._network = PatchDiscriminator(settings.features).to(device)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=settings.lr, betas=(0.5, 0.99))
        self._real_mean = 0.0

    def weigh(self, fake_BCHW: Tensor, step: int) -> Tensor:
        """The weighted loss for the network that made the image; 0 before the first step."""
        if step < self._first_step:
            return fake_BCHW.new_zeros(())
        # The gradient goes through it to the image, not into it.
        self._network.requires_grad_(False)
        judged = self._network(fake_BCHW) - self._real_mean
        return self._weight * F.softplus(-judged).mean()

    def learn(self, fake_BCHW: Tensor, real_BCHW: Tensor, step: int) -> None:
        """One update of the discriminator."""
        if step < self._first_step:
            return
        self._network.requires_grad_(True)
        real, fake = self._network(real_BCHW), self._network(fake_BCHW)
        loss = F.softplus(-(real - fake.mean())).mean() + F.softplus(fake - real.mean()).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._real_mean = float(real.detach().mean())

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "real_mean": self._real_mean,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._network.load_state_dict(saved["network"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._real_mean = float(saved["real_mean"])


def new_adversary(settings: TrainSettings, device: torch.device) -> Adversary | None:
    """The adversary that the settings ask for, or None."""
    if settings.adversarial.weight == 0:
        return None
    if settings.task == "fusion":
        raise Refusal(
            "is for native experts only: a fused image is judged by PSNR",
            where="adversarial.weight",
            cure="set it to 0",
        )
    if settings.processes > 1:
        raise Refusal(
            "works in one process only", where="adversarial.weight", cure="set processes=1 or the weight to 0"
        )
    return Adversary(settings.adversarial, round(settings.adversarial.start * settings.steps), device)
