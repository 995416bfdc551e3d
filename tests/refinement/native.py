"""Small native refiners with random weights, as files, and the change that one makes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fusion.refinement.native.network import ARCHITECTURE, NativeRefinerNetwork
from fusion.refinement.native.open import NativeRefiner
from fusion.refinement.native.run import change_of
from fusion.training.loop.export import export_weights


def small_file(path: Path, *, widths: tuple[int, ...] = (8, 16), architecture: str = ARCHITECTURE) -> Path:
    """A file as training writes it, with random weights, also in the last layer."""
    torch.manual_seed(0)
    network = NativeRefinerNetwork(widths)
    nn.init.normal_(network.unet.conv_out.weight, std=0.03)
    draw_at_random(network, 0.1)
    settings = {"widths": list(widths)}
    export_weights(path, network.state_dict(), architecture=architecture, hyperparameters=settings, provenance={})
    return path


def draw_at_random(network: NativeRefinerNetwork, std: float) -> None:
    """Its convolutions at full size begin with a last layer of zeros, beside which no other of them is seen."""
    last = network.textures.draw[-1]
    assert isinstance(last, nn.Conv2d)
    nn.init.normal_(last.weight, std=std)


def change(refiner: NativeRefiner, fused_CHW: Tensor, lr_CHW: Tensor, seed: int = 3) -> Tensor:
    """What it adds to a fused image."""
    return change_of(refiner, fused_CHW, lr_CHW, seed, lambda: None, lambda _: None)
