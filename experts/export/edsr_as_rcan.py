"""EDSR -> an RCAN with the same result: spandrel, and the programs built on it, know the one but not the other.

RCAN is EDSR with an attention in each block, which can be set to 1, and with groups of blocks, of which one is enough.
But a group adds its input to its output once more than EDSR does. Its own last convolution therefore multiplies by a
large number, beside which what is added is nothing, and the next divides by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from spandrel.architectures.RCAN import RCAN
from torch import nn

if TYPE_CHECKING:
    from experts.native.edsr import EDSR

LARGE = 2.0**17  # a power of 2 rounds nothing; what is added is then below float32's rounding of an image
OPEN = 30.0  # a sigmoid of this is 1 in float32
RGB_RANGE = 255.0  # what spandrel builds its RCAN for


def edsr_as_rcan(edsr: EDSR) -> RCAN:
    """The network's tensors at their places in an RCAN."""
    features = edsr.conv_first.out_channels
    rcan = RCAN(
        scale=int(edsr.hyperparameters.get("upscale", 4)),
        n_resgroups=1,
        n_resblocks=len(edsr.body),
        n_feats=features,
        reduction=features,
    )
    state = {key: torch.zeros_like(value) for key, value in rcan.state_dict().items()}
    mean = edsr.get_buffer("mean").flatten()
    unit_CC11 = torch.eye(len(mean))[..., None, None]
    state["sub_mean.weight"], state["sub_mean.bias"] = unit_CC11 * edsr.img_range / RGB_RANGE, -mean * edsr.img_range
    state["add_mean.weight"], state["add_mean.bias"] = unit_CC11 * RGB_RANGE / edsr.img_range, mean * RGB_RANGE
    _put(state, "head.0", edsr.conv_first)
    for index, block in enumerate(edsr.body):
        place = f"body.0.body.{index}.body"
        _put(state, f"{place}.0", block.get_submodule("conv1"))
        _put(state, f"{place}.2", block.get_submodule("conv2"), getattr(block, "res_scale", 1.0))
        state[f"{place}.3.conv_du.2.bias"].fill_(OPEN)
    group = state[f"body.0.body.{len(edsr.body)}.weight"]
    group[range(features), range(features), 1, 1] = LARGE
    _put(state, "body.1", edsr.conv_after_body)
    state["body.1.weight"] = state["body.1.weight"] / LARGE
    for index, layer in enumerate(edsr.upsample):
        if isinstance(layer, nn.Conv2d):
            _put(state, f"tail.0.{index}", layer)
    _put(state, "tail.1", edsr.conv_last)
    rcan.load_state_dict(state)
    return rcan.eval().requires_grad_(requires_grad=False)


def _put(state: dict[str, torch.Tensor], place: str, layer: nn.Module, factor: float = 1.0) -> None:
    """A convolution's weight and bias, times a factor."""
    state[f"{place}.weight"] = layer.get_parameter("weight").detach().float() * factor
    state[f"{place}.bias"] = layer.get_parameter("bias").detach().float() * factor
