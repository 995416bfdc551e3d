"""Fused image, LR image and noise -> what to add to the fused image: diffusers' `UNet2DModel`, working at LR size.

A flow (Lipman et al. 2022) from noise at time 1 to the residual (truth minus fused image) at time 0, both over its
spread. The network predicts where the flow ends, so that one Euler step from time 1 returns its prediction, and a last
layer of zeros returns the fused image.

What the UNet returns at LR size is no pixels: textures.py makes pixels of it. Axes: B batch, C channels, H and W.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.refinement.native.textures import COLOURS, REACH, Textures, detail_of
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence

ARCHITECTURE = "NativeRefiner"
PACKED = COLOURS * SCALE**2  # channels of an image of four times LR size, unshuffled to LR size
_TIMES = 1000  # diffusers counts the time of a flow in thousandths
EXTRA_CURE = "pip install 'championship-sr[diffusion]'"


class PixelNorm(nn.Module):
    """Over the channels of each pixel, in the place of `GroupNorm`, which would see the tile: so tiles equal the whole.

    It takes over the weight and bias of the norm that it replaces.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        assert norm.weight is not None
        assert norm.bias is not None
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mean 0 and variance 1 at each pixel, then scale and shift by channel."""
        mean_B1HW = x_BCHW.mean(1, keepdim=True)
        variance_B1HW = (x_BCHW * x_BCHW).mean(1, keepdim=True) - mean_B1HW * mean_B1HW
        x_BCHW = (x_BCHW - mean_B1HW) * torch.rsqrt(variance_B1HW.clamp_min(0) + 1e-5)
        return x_BCHW * self.weight[:, None, None] + self.bias[:, None, None]


class NativeRefinerNetwork(nn.Module):
    """`widths`: channels of each level, halving the sides from one to the next; `spread`: what residuals are divided
    by, about the mean square of truth minus fused image (its root); `textures` and `hidden`: see textures.py."""

    def __init__(
        self,
        widths: Sequence[int] = (64, 96),
        layers: int = 1,
        spread: float = 0.1,
        textures: int = 12,
        hidden: int = 16,
    ) -> None:
        super().__init__()
        self.spread, self.levels = spread, len(widths)
        self.multiple = 2 ** (self.levels - 1)
        self.reach = _reach(self.levels, layers)
        self.textures = Textures(textures, hidden)
        self.unet = _unet(tuple(widths), layers, self.textures.channels)

    def forward(self, fused_BCHW: Tensor, lr_BCHW: Tensor, noisy_BCHW: Tensor, time_B: Tensor | float = 1.0) -> Tensor:
        """`noisy_BCHW` (B, 48, H, W): the point of the flow, at time 1 noise of unit variance -> residual, image size.

        LR sides must be multiples of `multiple`.
        """
        seen_BCHW = torch.cat([F.pixel_unshuffle(fused_BCHW * 2 - 1, SCALE), lr_BCHW * 2 - 1, noisy_BCHW], dim=1)
        told_BCHW = self.unet(seen_BCHW, time_B * _TIMES, return_dict=False)[0]
        detail_BCHW = detail_of(fused_BCHW, lr_BCHW) / self.spread
        return self.textures(told_BCHW, F.pixel_shuffle(noisy_BCHW, SCALE), detail_BCHW) * self.spread

    def velocity(self, predicted_BCHW: Tensor, noisy_BCHW: Tensor, time_B111: Tensor | float = 1.0) -> Tensor:
        """The prediction (B, 3, 4H, 4W) as the velocity that `FlowMatchEulerDiscreteScheduler.step` takes."""
        return (noisy_BCHW - F.pixel_unshuffle(predicted_BCHW / self.spread, SCALE)) / time_B111


def _unet(widths: tuple[int, ...], layers: int, channels: int) -> Any:
    if find_spec("diffusers") is None:
        raise Refusal("the native refiner needs diffusers", where="refiner", cure=EXTRA_CURE)
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
    except (ImportError, RuntimeError) as error:
        first = " ".join(str(error).split())[:200]
        raise Refusal(f"diffusers cannot be imported ({first})", where="refiner", cure=EXTRA_CURE) from error
    unet = UNet2DModel(
        in_channels=2 * PACKED + COLOURS,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
        add_attention=False,  # attention sees the whole image: tiles would differ from it
        norm_num_groups=1,
    )
    _localize(unet)
    nn.init.zeros_(unet.conv_out.weight)
    assert unet.conv_out.bias is not None
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def _localize(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, PixelNorm(child))
        else:
            _localize(child)


def _reach(levels: int, layers: int) -> int:
    """How many LR pixels away an output pixel's inputs lie at most, rounded up to what the levels' sides divide by."""
    # Each residual block has two 3x3 convolutions; the way up has one block more a level than the way down.
    pixels = 2 + REACH  # first and last convolution, the textures
    for level in range(levels):
        deepest = level == levels - 1
        blocks = layers + (layers + 1) + (2 if deepest else 0)
        steps = 0 if deepest else 2  # the strided convolution down, the one after enlarging
        pixels += 2**level * 2 * blocks + 2**level * 2 * steps
    multiple = 2 ** (levels - 1)
    return -(-pixels // multiple) * multiple
