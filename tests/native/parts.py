"""Small native networks for tests, and every ablation of the three drafts as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from experts.native.freqnet import FreqNet
from experts.native.msg import MSG
from experts.native.ssm import SSM

if TYPE_CHECKING:
    from experts.native.base import NativeNetwork

KINDS: dict[str, type[NativeNetwork]] = {"msg": MSG, "freqnet": FreqNet, "ssm": SSM}
SMALL: dict[str, dict[str, Any]] = {
    "msg": {"widths": (16, 16, 16), "depths": (1, 1, 2), "up_depths": (1, 1), "kernel": 7, "window_size": 4},
    "freqnet": {"widths": (16, 16, 16), "depths": (1, 1), "up_depths": (1, 1), "kernel": 5, "window_size": 4},
    "ssm": {"widths": (16, 32), "stages": 2, "kernel": 5, "window_size": 4, "states": 4},
}

# Every switch that a draft names, away from its default.
ABLATIONS: list[tuple[str, dict[str, Any]]] = [
    ("msg", {"moe": "single"}),
    ("msg", {"moe": "dense"}),
    ("msg", {"top_k": 1}),
    ("msg", {"long_range": "window"}),
    ("msg", {"long_range": "ssm"}),
    ("msg", {"split": "none"}),
    ("msg", {"split": "fft"}),
    ("msg", {"split": "laplacian"}),
    ("msg", {"texture": "plain"}),
    ("msg", {"upsampler": "moe"}),
    ("msg", {"upsampler": "dysample"}),
    ("msg", {"drop_path": 0.5}),
    ("msg", {"recompute": True}),
    ("msg", {"scale": 2}),
    ("freqnet", {"moe": "single"}),
    ("freqnet", {"moe": "dense"}),
    ("freqnet", {"top_k": 1}),
    ("freqnet", {"high": False}),
    ("freqnet", {"attention": False}),
    ("freqnet", {"splitter": "laplacian"}),
    ("freqnet", {"splitter": "blur"}),
    ("freqnet", {"upsampler": "dysample"}),
    ("freqnet", {"upsampler": "moe"}),
    ("freqnet", {"skip_flat": 0.29}),
    ("freqnet", {"recompute": True, "drop_path": 0.5}),
    ("ssm", {"mixer": "window"}),
    ("ssm", {"directions": 1}),
    ("ssm", {"directions": 2}),
    ("ssm", {"fourier": False}),
    ("ssm", {"moe": "off"}),
    ("ssm", {"moe": "single"}),
    ("ssm", {"moe": "dense"}),
    ("ssm", {"top_k": 1}),
    ("ssm", {"noise": 0.1}),
    ("ssm", {"upsampler": "moe"}),
    ("ssm", {"upsampler": "dysample"}),
    ("ssm", {"recompute": True, "drop_path": 0.5}),
]


def label(case: tuple[str, dict[str, Any]]) -> str:
    """msg-moe=single"""
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


def native(name: str, seed: int = 0, **changes: Any) -> NativeNetwork:
    """A small seeded network whose weights are all away from their initial values, in training mode."""
    torch.manual_seed(seed)
    network = KINDS[name](**{**SMALL[name], **changes})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return network


def image_of(output: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The image, whether or not a balance comes with it."""
    return output[0] if isinstance(output, tuple) else output


def features(height: int, width: int, channels: int = 16, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """A seeded random map."""
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))
