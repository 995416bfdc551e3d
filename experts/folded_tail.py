"""The upsampler of EDSR and RCAN -> one 5x5 convolution at LR size: the same image for less work.

Nothing in it is nonlinear: convolutions and pixel shuffles, so all of it together is one convolution of the features
whose outputs are the pixels of a block. Near the border zero padding at each size makes it another one: there the
layers themselves are run. Legend: B batch, C features, H and W of the LR image, O output colours, s scale.
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experts.native.edsr import EDSR
from imaging.layers import at_least_float32

REACH = 2  # LR pixels that 3x3 convolutions at the sizes 1, 2, 4, ... s see together: 1 + 1/2 + 1/4 + ... < 2
STRIP = 2 * REACH  # of the border: what is kept, and the surroundings that it needs


class FoldedTail(nn.Module):
    """The layers of an upsampler whose parameters stay as they are, and what they come to."""

    kernel_KCHW: Tensor
    bias_K: Tensor

    def __init__(self, layers: nn.Sequential, channels: int) -> None:
        super().__init__()
        self.layers = layers
        kernel_KCHW, bias_K, self._scale = _fold(layers, channels)
        self.register_buffer("kernel_KCHW", kernel_KCHW, persistent=False)
        self.register_buffer("bias_K", bias_K, persistent=False)

    def forward(self, feat_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, sH, sW), in float32 under any autocast: these are an image's values, not features."""
        with torch.autocast(feat_BCHW.device.type, enabled=False):
            return self._enlarge(at_least_float32(feat_BCHW))

    def _enlarge(self, feat_BCHW: Tensor) -> Tensor:
        if min(feat_BCHW.shape[-2:]) <= 2 * STRIP:
            return self.layers(feat_BCHW)
        blocks_BKHW = F.conv2d(feat_BCHW, self.kernel_KCHW, self.bias_K, padding=REACH)
        sr_BOHW = F.pixel_shuffle(blocks_BKHW, self._scale)
        edge = self._scale * REACH
        for part, keep in ((slice(STRIP), slice(edge)), (slice(-STRIP, None), slice(-edge, None))):
            sr_BOHW[..., keep] = self.layers(feat_BCHW[..., part])[..., keep]
        # The rows go last: they hold the corners, where both borders count.
        for part, keep in ((slice(STRIP), slice(edge)), (slice(-STRIP, None), slice(-edge, None))):
            sr_BOHW[..., keep, :] = self.layers(feat_BCHW[..., part, :])[..., keep, :]
        return sr_BOHW


def fold_upsampler(network: nn.Module) -> None:
    """Of a network whose weights stay as they are; others than EDSR and RCAN are left alone."""
    if isinstance(network, EDSR):
        network.upsample = nn.Sequential(_folded([*network.upsample, network.conv_last]))
        network.add_module("conv_last", nn.Identity())
    elif _is_rcan(network) and getattr(network, "downscale_factor", 1) == 1:
        upsampler, last = network.get_submodule("tail").children()
        network.tail = nn.Sequential(_folded([*upsampler.children(), last]))


def unfold_upsampler(network: nn.Module) -> None:
    """The layers again, as the file has them: for exports, whose graphs must not depend on the image's size."""
    folded = next((one for one in network.modules() if isinstance(one, FoldedTail)), None)
    if folded is None:
        return
    *upsampler, last = folded.layers
    if isinstance(network, EDSR):
        network.upsample = nn.Sequential(*upsampler)
        network.add_module("conv_last", last)
    else:
        network.tail = nn.Sequential(nn.Sequential(*upsampler), last)


def _is_rcan(network: nn.Module) -> bool:
    """Of spandrel's class, whose module is there if a network of it is: importing it anew takes two seconds."""
    module = sys.modules.get("spandrel.architectures.RCAN")
    return module is not None and isinstance(network, getattr(module, "RCAN", ()))  # it may be being imported


def _folded(layers: list[nn.Module]) -> FoldedTail:
    last = layers[-1]
    assert isinstance(last, nn.Conv2d)
    return FoldedTail(nn.Sequential(*layers), last.in_channels)


def _fold(layers: nn.Sequential, channels: int) -> tuple[Tensor, Tensor, int]:
    """The layers' answers to a single pixel of each feature, in float64, are the kernel."""
    middle = 2 * REACH  # of an image so large that no border is within reach of it
    size = 2 * middle + 1
    double = copy.deepcopy(layers).double()
    pixel_CCHW = torch.zeros(channels, channels, size, size, dtype=torch.float64)
    pixel_CCHW[range(channels), range(channels), middle, middle] = 1
    with torch.no_grad():
        nothing_1OHW = double(torch.zeros(1, channels, size, size, dtype=torch.float64))
        answer_COHW = double(pixel_CCHW) - nothing_1OHW
    scale = answer_COHW.shape[-1] // size
    # As pixel_unshuffle orders them: K = (colour, row in the block, column in the block).
    blocks_CKHW = F.pixel_unshuffle(answer_COHW, scale)
    near = slice(middle - REACH, middle + REACH + 1)
    # A block d pixels below the pixel sees it d pixels above itself: mirrored.
    kernel_KCHW = blocks_CKHW[:, :, near, near].flip(-2, -1).transpose(0, 1)
    bias_K = F.pixel_unshuffle(nothing_1OHW, scale)[0, :, middle, middle]
    like = next(layers.parameters())
    return kernel_KCHW.to(like).contiguous(), bias_K.to(like), scale
