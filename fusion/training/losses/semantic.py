"""sr_BCHW, hr_BCHW in [0, 1] -> 1 - cosine of their CLIP image embeddings; the model is a local folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.training.losses.files import LossFile
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

FILE = LossFile(
    "losses/clip-vit-base-patch32",
    "a CLIP folder in transformers' format (config.json, model.safetensors)",
    "https://huggingface.co/openai/clip-vit-base-patch32",
)
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class CLIP(nn.Module):
    """Distance of meaning. Both images are resized to the model's input size."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model: Any = _load(path)
        self.model.requires_grad_(False)
        self.model.eval()
        self._size = int(self.model.config.image_size)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

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


def _load(path: Path) -> nn.Module:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise Refusal("the loss 'clip' needs transformers", where="stages", cure="pip install transformers") from None
    try:
        return transformers.CLIPVisionModelWithProjection.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"is no CLIP folder ({str(error).splitlines()[0]})", where=path, cure=f"get it from {FILE.page}"
        ) from None
