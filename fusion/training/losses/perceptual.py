"""sr_BCHW, hr_BCHW in [0, 1] -> their distance in the features of a trained network: VGG-19, LPIPS or CLIP.

The trunks are local files; nothing is downloaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.training.losses.files import LossFile, read_weights
from imaging.metrics.perceptual import TRUNK_FILE, load_lpips
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

VGG_FILE = LossFile(
    "losses/vgg19-dcbb9e9d.pth",
    "torchvision's VGG-19 weights",
    "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
)
LPIPS_FILE = LossFile(
    f"metrics/{TRUNK_FILE}", "torchvision's AlexNet weights", f"https://download.pytorch.org/models/{TRUNK_FILE}"
)
CLIP_FILE = LossFile(
    "losses/clip-vit-base-patch32",
    "a CLIP folder in transformers' format (config.json, model.safetensors)",
    "https://huggingface.co/openai/clip-vit-base-patch32",
)
_VGG_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)  # 0: pooling
# The layer before the last activation of each block (conv1_2, 2_2, 3_4, 4_4, 5_4), with the usual weights.
_VGG_DEPTHS = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}
_VGG_MEAN, _VGG_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG(nn.Module):
    """Perceptual distance (Johnson et al. 2016)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.features = _vgg_trunk()
        weights = {
            key.removeprefix("features."): value
            for key, value in read_weights(path).items()
            if key.startswith("features.")
        }
        own = self.features.state_dict()
        wrong = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
        if wrong:
            raise Refusal(
                f"is no VGG-19: features.{wrong[0]} is missing or differs",
                where=path,
                cure=f"get it from {VGG_FILE.page}",
            )
        self.features.load_state_dict({key: weights[key] for key in own})
        self.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(_VGG_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_VGG_STD)[:, None, None], persistent=False)

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        x, total = torch.cat([(sr_BCHW - mean) / std, (hr_BCHW - mean) / std]), sr_BCHW.new_zeros(())
        for depth, layer in enumerate(self.features):
            x = layer(x)
            if depth in _VGG_DEPTHS:
                ours, theirs = x.chunk(2)
                total = total + _VGG_DEPTHS[depth] * (ours - theirs.detach()).abs().mean()
        return total


def _vgg_trunk() -> nn.Sequential:
    """VGG-19's convolutions up to the deepest layer that is compared, numbered as torchvision's."""
    layers: list[nn.Module] = []
    before = 3
    for width in _VGG_WIDTHS:
        if width == 0:
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    return nn.Sequential(*layers[: max(_VGG_DEPTHS) + 1])


class LPIPS(nn.Module):
    """The metric's own network, without the rounding to 8 bits that the metric does."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model = load_lpips(path)

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number."""
        return self.model(sr_BCHW * 2 - 1, hr_BCHW * 2 - 1).mean()


class LpipsFeatures(nn.Module):
    """LPIPS among three images, each seen once: of two to a third, and of the two to one another."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model: Any = load_lpips(path)

    def forward(self, first_BCHW: Tensor, second_BCHW: Tensor, truth_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(mean of both distances to the truth, distance of the two), one number each."""
        made = self._features(torch.cat([first_BCHW, second_BCHW]))
        with torch.no_grad():
            true = self._features(truth_BCHW)
        near, apart = first_BCHW.new_zeros(()), first_BCHW.new_zeros(())
        for both, truth, head in zip(made, true, self.model.lins, strict=True):
            first, second = both.chunk(2)
            near = near + (head((first - truth).square()).mean() + head((second - truth).square()).mean()) / 2
            apart = apart + head((first - second).square()).mean()
        return near, apart

    def _features(self, image_BCHW: Tensor) -> list[Tensor]:
        outputs = self.model.net(self.model.scaling_layer(image_BCHW * 2 - 1))
        return [F.normalize(one, dim=1, eps=1e-10) for one in outputs]


_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class CLIP(nn.Module):
    """Distance of meaning. Both images are resized to the model's input size."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model: Any = _load_clip(path)
        self.model.requires_grad_(False)
        self.model.eval()
        self._size = int(self.model.config.image_size)
        self.register_buffer("mean", torch.tensor(_CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_CLIP_STD)[:, None, None], persistent=False)

    def forward(self, sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
        """Two images -> one number in [0, 2]."""
        with torch.no_grad():
            target_BD = self._embed(hr_BCHW)
        return 1 - F.cosine_similarity(self._embed(sr_BCHW), target_BD, dim=-1).mean()

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        size = (self._size, self._size)
        resized = F.interpolate(image_BCHW, size=size, mode="bicubic", align_corners=False, antialias=True)
        normal = (resized - self.get_buffer("mean")) / self.get_buffer("std")
        return self.model(pixel_values=normal).image_embeds


def _load_clip(path: Path) -> nn.Module:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise Refusal("the loss 'clip' needs transformers", where="stages", cure="pip install transformers") from None
    try:
        return transformers.CLIPVisionModelWithProjection.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"is no CLIP folder ({str(error).splitlines()[0]})", where=path, cure=f"get it from {CLIP_FILE.page}"
        ) from None
