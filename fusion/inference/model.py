"""A fusion model -> the callable that inference uses, for tiles of every size and any subset of its experts.

Axes: B batch, E experts, C channels, H and W of the LR tile.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from fusion.inference.ensemble import SCALE, Answer, Fused
from fusion.network.inputs import SMALLEST
from fusion.network.save import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion.inference.ensemble import Fuse
    from fusion.network import FusionSR

# LR pixels of surroundings that the fusion itself is given beyond those of the experts. Its large kernels and its
# spectrum see further, but faintly: docs/results/inference.md has the difference between tiled and whole.
FUSION_MARGIN = 16
FUSION_MULTIPLE = 8  # the side of its DCT blocks


def fuse_with(model: FusionSR) -> Fuse:
    """(tile, answers) -> Fused, always in float32: the same arithmetic as in training and evaluation."""

    def fuse(lr_BCHW: Tensor, answers: Mapping[str, Answer]) -> Fused:
        height, width = lr_BCHW.shape[-2:]
        down, right = max(0, SMALLEST - height), max(0, SMALLEST - width)
        names = tuple(answers)
        sr_BECHW = torch.stack([_longer(answer.sr_BCHW, SCALE * down, SCALE * right) for answer in answers.values()], 1)
        feats = {
            name: _longer(answer.feat_BCHW, down, right)
            for name, answer in answers.items()
            if answer.feat_BCHW is not None and model.settings.channels_of(name)
        }
        output = model(_longer(lr_BCHW, down, right), sr_BECHW, feats, names)
        real = (..., slice(0, SCALE * height), slice(0, SCALE * width))
        difficulty = None if output.difficulty_B1HW is None else output.difficulty_B1HW[real]
        contributions = {phase: part_BCHW[real] for phase, part_BCHW in output.contributions.items()}
        return Fused(output.image_BCHW[real], output.gates_BEHW[real], difficulty, contributions)

    return fuse


def model_sha256(model: FusionSR) -> str:
    """Of all that decides what the model does: weights, base, settings."""
    tensors = {name: value.cpu() for name, value in model.state_dict().items()}
    return hashlib.sha256(f"{fingerprint(tensors)} {model.settings.model_dump_json()}".encode()).hexdigest()


def _longer(x_BCHW: Tensor, down: int, right: int) -> Tensor:
    """Images below the network's least size go on with their last pixel."""
    return F.pad(x_BCHW, (0, right, 0, down), mode="replicate") if down or right else x_BCHW
