"""Real architectures with random weights and the reference channel counts, and photographs to run them on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from spandrel.architectures.DRCT import DRCT
from spandrel.architectures.GRL import GRL
from spandrel.architectures.HAT import HAT

from experts.native.edsr import EDSR
from experts.run import NetworkExpert
from experts.spec import ExpertSpec, Padding, Tap, WeightsSource
from imaging.files import read_rgb, write_picture
from imaging.scale import SCALE
from imaging.tools.samples import write_samples

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

# As the published models in everything that shapes the features; one group of blocks instead of seven to twelve.
_TRANSFORMER: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": 180,
    "mlp_ratio": 2,
    "upscale": 4,
    "img_range": 1.0,
    "upsampler": "pixelshuffle",
}
_NETWORKS: tuple[tuple[str, type[nn.Module], dict[str, Any], int, int], ...] = (
    ("hat", HAT, {"depths": (6,), "num_heads": (6,), "window_size": 16, "resi_connection": "1conv"}, 180, 16),
    (
        "drct",
        DRCT,
        {"depths": (6,), "num_heads": (6,), "window_size": 16, "gc": 32, "resi_connection": "1conv"},
        180,
        16,
    ),
    (
        "grl",
        GRL,
        {
            "depths": [4],
            "num_heads_window": [3],
            "num_heads_stripe": [3],
            "window_size": 32,
            "stripe_size": [64, 64],
            "stripe_groups": [None, None],
            "stripe_shift": True,
            "anchor_proj_type": "avgpool",
            "anchor_window_down_factor": 2,
            "local_connection": True,
            "conv_type": "1conv",
        },
        180,
        64,
    ),
    ("edsr", EDSR, {"num_feat": 256, "num_block": 4, "res_scale": 0.1, "upscale": 4}, 256, 1),
)


def make_networks() -> list[NetworkExpert]:
    """The four experts, 180 + 180 + 180 + 256 channels, tapped where the published ones are."""
    experts: list[NetworkExpert] = []
    for name, kind, own, channels, multiple in _NETWORKS:
        torch.manual_seed(0)
        hyperparameters = own if kind is EDSR else {**_TRANSFORMER, **own}
        tap, padding = Tap(module="conv_after_body", channels=channels), Padding(multiple=multiple)
        spec = ExpertSpec(name=name, weights=(WeightsSource(file="random"),), tap=tap, padding=padding)
        network = kind(**hyperparameters).eval().requires_grad_(requires_grad=False)
        experts.append(
            NetworkExpert(
                spec,
                network,
                architecture=kind.__name__,
                tap=tap,
                padding=padding,
                weights_sha256="random, seed 0",
                device=torch.device("cpu"),
            )
        )
    return experts


def write_photographs(folder: Path, lr_size: int, count: int) -> None:
    """Square HR cuts of the sample photographs as PNG files: `count` of 4 * lr_size pixels a side."""
    samples = write_samples(folder / "samples")
    side = SCALE * lr_size
    for number in range(count):
        rgb_BCHW = read_rgb(samples[number % len(samples)])
        top = (37 * number) % (rgb_BCHW.shape[-2] - side + 1)
        left = (53 * number) % (rgb_BCHW.shape[-1] - side + 1)
        write_picture(folder / "hr" / f"{number:02d}.png", rgb_BCHW[..., top : top + side, left : left + side])
