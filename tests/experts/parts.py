"""Small real networks of the four reference architectures, and files of their weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from spandrel.architectures.DRCT import DRCT
from spandrel.architectures.GRL import GRL
from spandrel.architectures.HAT import HAT

from experts.native.edsr import EDSR

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

SMALL: dict[str, dict[str, Any]] = {
    "HAT": {
        "img_size": 64,
        "embed_dim": 24,
        "depths": (2,),
        "num_heads": (2,),
        "window_size": 16,
        "compress_ratio": 3,
        "squeeze_factor": 4,
        "conv_scale": 0.01,
        "overlap_ratio": 0.5,
        "mlp_ratio": 2,
        "upscale": 4,
        "img_range": 1.0,
        "upsampler": "pixelshuffle",
        "resi_connection": "1conv",
    },
    "DRCT": {
        "img_size": 64,
        "embed_dim": 24,
        "depths": (6,),
        "num_heads": (2,),
        "window_size": 16,
        "mlp_ratio": 2,
        "gc": 8,
        "upscale": 4,
        "img_range": 1.0,
        "upsampler": "pixelshuffle",
        "resi_connection": "1conv",
    },
    "GRL": {
        "img_size": 64,
        "embed_dim": 24,
        "depths": [2],
        "num_heads_window": [2],
        "num_heads_stripe": [2],
        "window_size": 32,
        "stripe_size": [64, 64],
        "stripe_groups": [None, None],
        "stripe_shift": True,
        "mlp_ratio": 2,
        "anchor_proj_type": "avgpool",
        "anchor_window_down_factor": 2,
        "local_connection": True,
        "upscale": 4,
        "img_range": 1.0,
        "upsampler": "pixelshuffle",
        "conv_type": "1conv",
    },
    "EDSR": {"num_feat": 16, "num_block": 2, "upscale": 4},
}
CLASSES: dict[str, type[nn.Module]] = {"HAT": HAT, "DRCT": DRCT, "GRL": GRL, "EDSR": EDSR}


def small_network(architecture: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A seeded network of the architecture, its biases not zero so that mistakes in them show."""
    torch.manual_seed(seed)
    network = CLASSES[architecture](**{**SMALL[architecture], **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network.eval()


def save_network(network: nn.Module, path: Path, header: dict[str, Any] | None = None) -> Path:
    """Write the weights, as .safetensors with a header or as .pth."""
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata=None if header is None else {"hyperparameters": json.dumps(header)})
    else:
        torch.save(tensors, path)
    return path


def original_edsr_layout(network: EDSR) -> dict[str, torch.Tensor]:
    """A network's weights under the names of the original EDSR release, mean shifts included."""
    state = network.state_dict()
    blocks = network.hyperparameters["num_block"]
    renamed: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "conv_first":
            new = f"head.0.{rest}"
        elif part == "body":
            index, which, kind = rest.split(".")
            new = f"body.{index}.body.{'0' if which == 'conv1' else '2'}.{kind}"
        elif part == "conv_after_body":
            new = f"body.{blocks}.{rest}"
        elif part == "upsample":
            new = f"tail.0.{rest}"
        else:
            new = f"tail.1.{rest}"
        renamed[new] = value
    mean = torch.tensor(network.hyperparameters["rgb_mean"])
    eye = torch.eye(3).view(3, 3, 1, 1)
    renamed |= {"sub_mean.weight": eye, "sub_mean.bias": -255 * mean}
    renamed |= {"add_mean.weight": eye.clone(), "add_mean.bias": 255 * mean}
    return renamed


def image(height: int, width: int, *, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """(B, 3, H, W) float32 in [0, 1], seeded."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
