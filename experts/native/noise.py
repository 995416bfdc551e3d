"""Features -> features with a little noise, as StyleGAN2 feeds texture; the same noise every time an image is run.

Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class NoiseHead(nn.Module):
    """One plane of white noise, weighed per channel within `amplitude`.

    In training the noise is new every time, from torch's own generator, or the network would learn it by heart.
    """

    def __init__(self, channels: int, amplitude: float, seed: int = 0) -> None:
        super().__init__()
        self.amplitude, self.seed = amplitude, seed
        self.strength = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        batch, _, height, width = x_BCHW.shape
        if self.training:
            noise_B1HW = torch.randn(batch, 1, height, width, device=x_BCHW.device)
        else:
            generator = torch.Generator().manual_seed(self.seed)
            noise_B1HW = torch.randn(1, 1, height, width, generator=generator).to(x_BCHW.device)
        weight_C11 = self.amplitude * torch.tanh(self.strength)[:, None, None]
        return x_BCHW + (weight_C11 * noise_B1HW).to(x_BCHW.dtype)
