"""EDSR (Lim et al. 2017): LR image in [0, 1] -> SR image; both published key layouts load. spandrel lacks it.

Legend: B batch, C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experts.native.recognise import Built, OwnArchitecture, sequence_length, stores_hyperparameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from experts.native.recognise import Tensors

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)

# Published EDSR models of 256 features scale their residuals by 0.1, the smaller ones by 1 (Lim et al., section 3.3).
WIDE_FEATURES, WIDE_RES_SCALE = 256, 0.1


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a ReLU, scaled and added to the input."""

    def __init__(self, features: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x_BCHW + self.res_scale * self.conv2(torch.relu(self.conv1(x_BCHW)))


@stores_hyperparameters
class EDSR(nn.Module):
    """The network in BasicSR's key layout: input and output RGB, nominally in [0, 1], not clamped."""

    hyperparameters: dict[str, Any] = {}

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 4,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = DIV2K_MEAN,
    ) -> None:
        super().__init__()
        self.img_range = img_range
        self.register_buffer("mean", torch.tensor(rgb_mean).view(1, num_in_ch, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(num_feat, res_scale) for _ in range(num_block)))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsample = nn.Sequential(*_upsampling(num_feat, upscale))
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, sH, sW)."""
        mean = self.get_buffer("mean").to(lr_BCHW)
        shallow_BCHW = self.conv_first((lr_BCHW - mean) * self.img_range)
        deep_BCHW = self.conv_after_body(self.body(shallow_BCHW))
        sr_BCHW = self.conv_last(self.upsample(deep_BCHW + shallow_BCHW))
        return sr_BCHW / self.img_range + mean


def _upsampling(features: int, upscale: int) -> list[nn.Module]:
    """Convolution and pixel shuffle: one pair per factor 2, or one pair for a factor 3."""
    if upscale == 3:
        factors = [3]
    elif upscale >= 1 and upscale & (upscale - 1) == 0:
        factors = [2] * int(math.log2(upscale))
    else:
        raise ValueError(f"EDSR upscales by powers of 2 or by 3, not by {upscale}")
    layers: list[nn.Module] = []
    for factor in factors:
        layers += [nn.Conv2d(features, features * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    return layers


def build_edsr(tensors: Tensors) -> Built:
    """Either layout's tensors -> the network they imply."""
    range_and_mean: dict[str, Any] = {}
    if "head.0.weight" in tensors:
        range_and_mean = read_mean_shift(tensors)
        tensors = to_basicsr_layout(tensors)
    features, in_channels = tensors["conv_first.weight"].shape[:2]
    out_channels, upscale = tensors["conv_last.weight"].shape[0], _scale(tensors)
    network = EDSR(
        num_in_ch=in_channels,
        num_out_ch=out_channels,
        num_feat=features,
        num_block=sequence_length(tensors, "body"),
        upscale=upscale,
        res_scale=WIDE_RES_SCALE if features == WIDE_FEATURES else 1.0,
        **range_and_mean,
    )
    return Built(network, tensors, upscale, in_channels, out_channels)


def _scale(tensors: Tensors) -> int:
    """Each convolution before a pixel shuffle gives as many features again as the shuffle makes pixels of one."""
    shapes = [tensors[key].shape for key in tensors if re.fullmatch(r"upsample\.\d+\.weight", key)]
    return math.prod(math.isqrt(shape[0] // shape[1]) for shape in shapes)


EDSR_FILES = OwnArchitecture(
    "EDSR",
    layouts=(
        frozenset(
            (
                "conv_first.weight",
                "body.0.conv1.weight",
                "body.0.conv2.weight",
                "conv_after_body.weight",
                "upsample.0.weight",
                "conv_last.weight",
            )
        ),
        frozenset(
            (
                "sub_mean.weight",
                "head.0.weight",
                "body.0.body.0.weight",
                "body.0.body.2.weight",
                "tail.0.0.weight",
                "tail.1.weight",
                "add_mean.weight",
            )
        ),
    ),
    build=build_edsr,
)


def read_mean_shift(tensors: Tensors) -> dict[str, Any]:
    """The original layout's `sub_mean`: RGB mean and range; anything but a plain shift is an error."""
    weight, bias = tensors["sub_mean.weight"].float(), tensors["sub_mean.bias"].float()
    back = tensors["add_mean.bias"].float()
    identity = torch.eye(weight.shape[0]).view_as(weight)
    if not torch.allclose(weight, identity, atol=1e-6) or not torch.allclose(bias, -back, atol=1e-3):
        raise ValueError("sub_mean is not a plain shift by the RGB mean, or add_mean does not undo it")
    img_range = 255.0 if bias.abs().max() > 1 else 1.0
    return {"img_range": img_range, "rgb_mean": tuple((-bias / img_range).tolist())}


# The original layout's names (head, body.N.body.0/2, tail) and what BasicSR calls the same layers.
_ORIGINAL_TO_BASICSR = (
    (re.compile(r"^head\.0\."), "conv_first."),
    (re.compile(r"^body\.(\d+)\.body\.0\."), r"body.\1.conv1."),
    (re.compile(r"^body\.(\d+)\.body\.2\."), r"body.\1.conv2."),
    (re.compile(r"^body\.(\d+)\.(?=weight$|bias$)"), "conv_after_body."),
    (re.compile(r"^tail\.0\.(\d+)\."), r"upsample.\1."),
    (re.compile(r"^tail\.1\."), "conv_last."),
)


def to_basicsr_layout(tensors: Tensors) -> Tensors:
    """Original key layout -> BasicSR's; keys that belong to neither stay, so that strict loading names them."""
    renamed: Tensors = {}
    for key, value in tensors.items():
        if key.startswith(("sub_mean.", "add_mean.")):
            continue
        new_key = key
        for pattern, replacement in _ORIGINAL_TO_BASICSR:
            if pattern.match(key):
                new_key = pattern.sub(replacement, key)
                break
        renamed[new_key] = value
    return renamed
