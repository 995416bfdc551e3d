"""Attention at LR size: over a few tokens at each pixel, and over a large neighbourhood by decomposed kernels (LKA).

Tokens are few (9 bands or a handful of experts) and pixels many: a matrix product per pixel would be all overhead.
Pixels therefore stay the innermost axis and the work is elementwise arithmetic over them, one key at a time.
Axes: B batch, T tokens, D width, N heads, d channels of a head, H and W of the LR image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.parts import channel_norm


def attend(query_BTNdHW: Tensor, key_BTNdHW: Tensor, value_BTNdHW: Tensor) -> Tensor:
    """Scaled dot-product attention over T, at every pixel by itself; same shape as the values."""
    query = query_BTNdHW * query_BTNdHW.shape[3] ** -0.5
    # Unbound, not sliced: the gradient of a slice is a whole tensor of zeros around it, once per token.
    scores = [(query * key_BNdHW.unsqueeze(1)).sum(dim=3) for key_BNdHW in key_BTNdHW.unbind(dim=1)]
    shares_BTTNHW = torch.stack(scores, dim=2).softmax(dim=2)
    pairs = zip(shares_BTTNHW.unbind(dim=2), value_BTNdHW.unbind(dim=1), strict=True)
    terms = [share_BTNHW.unsqueeze(3) * value_BNdHW.unsqueeze(1) for share_BTNHW, value_BNdHW in pairs]
    return sum(terms[1:], terms[0])


class TokenAttention(nn.Module):
    """Multi-head attention among the tokens of a pixel, `inner` channels wide inside."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = channel_norm(width)
        self.project = nn.Conv2d(width, 3 * inner, 1)
        self.out = nn.Conv2d(inner, width, 1)

    def forward(self, tokens_BTDHW: Tensor) -> Tensor:
        """(B, T, D, H, W) -> what to add to it."""
        batch = tokens_BTDHW.shape[0]
        projected = self.project(self.norm(tokens_BTDHW.flatten(0, 1)))
        query, key, value = projected.unflatten(1, (3, self.heads, -1)).unflatten(0, (batch, -1)).unbind(dim=2)
        mixed_BTNdHW = attend(query, key, value)
        return self.out(mixed_BTNdHW.flatten(2, 3).flatten(0, 1)).unflatten(0, (batch, -1))


# 21 taps dilated by 3, after a 5x5: a receptive field of 65 pixels for 67 weights per channel.
KERNEL = 21
DILATION = 3


class LargeKernelAttention(nn.Module):
    """Depthwise 5x5, 1x21 and 21x1 dilated by 3, pointwise 1x1; the result weighs the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        reach = KERNEL // 2 * DILATION
        self.near = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.across = nn.Conv2d(width, width, (1, KERNEL), padding=(0, reach), dilation=(1, DILATION), groups=width)
        self.along = nn.Conv2d(width, width, (KERNEL, 1), padding=(reach, 0), dilation=(DILATION, 1), groups=width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        return x_BDHW * self.mix(self.along(self.across(self.near(x_BDHW))))


class LKABlock(nn.Module):
    """Norm, LKA, add; norm, pointwise feed-forward, add."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm_attention = channel_norm(width)
        self.attention = LargeKernelAttention(width)
        self.norm_forward = channel_norm(width)
        self.widen = nn.Conv2d(width, expansion * width, 1)
        self.narrow = nn.Conv2d(expansion * width, width, 1)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        x_BDHW = x_BDHW + self.attention(self.norm_attention(x_BDHW))
        return x_BDHW + self.narrow(F.gelu(self.widen(self.norm_forward(x_BDHW))))
