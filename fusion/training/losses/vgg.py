"""sr_BCHW, hr_BCHW in [0, 1] -> mean distance of their VGG-19 features at five depths; the trunk is a local file.

Layers are those before the last activation of each block, with the weights of common use (0.1, 0.1, 1, 1, 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusion.training.losses.files import LossFile, read_weights
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

FILE = LossFile(
    "losses/vgg19-dcbb9e9d.pth",
    "torchvision's VGG-19 weights",
    "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
)
_PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)  # 0: pooling
_DEPTHS = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}  # conv1_2, 2_2, 3_4, 4_4, 5_4
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG(nn.Module):
    """Perceptual distance (Johnson et al. 2016)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.features = _trunk()
        weights = {
            key.removeprefix("features."): value
            for key, value in read_weights(path).items()
            if key.startswith("features.")
        }
        own = self.features.state_dict()
        wrong = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
        if wrong:
            raise Refusal(
                f"is no VGG-19: features.{wrong[0]} is missing or differs", where=path, cure=f"get it from {FILE.page}"
            )
        self.features.load_state_dict({key: weights[key] for key in own})
        self.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        x, total = torch.cat([(sr_BCHW - mean) / std, (hr_BCHW - mean) / std]), sr_BCHW.new_zeros(())
        for depth, layer in enumerate(self.features):
            x = layer(x)
            if depth in _DEPTHS:
                ours, theirs = x.chunk(2)
                total = total + _DEPTHS[depth] * (ours - theirs.detach()).abs().mean()
        return total


def _trunk() -> nn.Sequential:
    """VGG-19's convolutions up to the deepest layer that is compared, numbered as torchvision's."""
    layers: list[nn.Module] = []
    before = 3
    for width in _PLAN:
        if width == 0:
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    return nn.Sequential(*layers[: max(_DEPTHS) + 1])
