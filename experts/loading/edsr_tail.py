"""EDSR's upsampler -> one 5x5 convolution at LR size with the same result, in a tenth of the time on a CPU.

Nothing in it is nonlinear: convolutions and pixel shuffles, so all of it together is one convolution of the features
whose outputs are the pixels of a block. Near the border zero padding at each size makes it another one: there the
layers themselves are run. Legend: B batch, C features, H and W of the LR image, O output colours, s scale.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor, nn

REACH = 2  # LR pixels that a 3x3 convolution at each of the sizes s, s/2, ... 1 sees in all: 1 + 1/2 + 1/4 + ... < 2
STRIP = 2 * REACH  # of the border: what is kept, and the surroundings that it needs


class FoldedTail:
    """The upsampler of one network, folded; its parameters must stay as they are."""

    def __init__(self, tail: nn.Module, channels: int, scale: int) -> None:
        self._tail, self._scale = tail, scale
        self.kernel_KCHW, self.bias_K = _fold(tail, channels, scale)

    def __call__(self, feat_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, sH, sW)."""
        if min(feat_BCHW.shape[-2:]) <= 2 * STRIP:
            return self._tail(feat_BCHW)
        blocks_BKHW = F.conv2d(feat_BCHW, self.kernel_KCHW, self.bias_K, padding=REACH)
        sr_BOHW = F.pixel_shuffle(blocks_BKHW, self._scale)
        edge = self._scale * REACH
        # The rows go last: they hold the corners, where both borders count.
        for part, keep in ((slice(STRIP), slice(edge)), (slice(-STRIP, None), slice(-edge, None))):
            sr_BOHW[..., keep] = self._tail(feat_BCHW[..., part])[..., keep]
        for part, keep in ((slice(STRIP), slice(edge)), (slice(-STRIP, None), slice(-edge, None))):
            sr_BOHW[..., keep, :] = self._tail(feat_BCHW[..., part, :])[..., keep, :]
        return sr_BOHW


def _fold(tail: nn.Module, channels: int, scale: int) -> tuple[Tensor, Tensor]:
    """The layers' answers to a single pixel of each feature, in float64, are the kernel."""
    middle = 2 * REACH  # of an image so large that no border is within reach of it
    size = 2 * middle + 1
    double = copy.deepcopy(tail).double()
    pixel_CCHW = torch.zeros(channels, channels, size, size, dtype=torch.float64)
    pixel_CCHW[range(channels), range(channels), middle, middle] = 1
    with torch.no_grad():
        nothing_1OHW = double(torch.zeros(1, channels, size, size, dtype=torch.float64))
        answer_COHW = double(pixel_CCHW) - nothing_1OHW
    # As pixel_unshuffle orders them: K = (colour, row in the block, column in the block).
    blocks_CKHW = F.pixel_unshuffle(answer_COHW, scale)
    near = slice(middle - REACH, middle + REACH + 1)
    # A block d pixels below the pixel sees it d pixels above itself: mirrored.
    kernel_KCHW = blocks_CKHW[:, :, near, near].flip(-2, -1).transpose(0, 1)
    bias_K = F.pixel_unshuffle(nothing_1OHW, scale)[0, :, middle, middle]
    like = next(tail.parameters())
    return kernel_KCHW.to(like).contiguous(), bias_K.to(like)
