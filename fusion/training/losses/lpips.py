"""sr_BCHW, hr_BCHW in [0, 1] -> LPIPS (Zhang et al. 2018), differentiable; the AlexNet trunk is a local file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from fusion.training.losses.files import LossFile
from imaging.metrics.perceptual import TRUNK_FILE, load_lpips

if TYPE_CHECKING:
    from pathlib import Path

FILE = LossFile(
    f"metrics/{TRUNK_FILE}", "torchvision's AlexNet weights", f"https://download.pytorch.org/models/{TRUNK_FILE}"
)


class LPIPS(nn.Module):
    """The metric's own network, without the rounding to 8 bits that the metric does."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model = load_lpips(path)

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        return self.model(sr_BCHW * 2 - 1, hr_BCHW * 2 - 1).mean()
