"""Tokens at each pixel (B, T, D, H, W) -> what each has learned from the others at the same pixel.

The tokens are few (9 bands or a handful of experts) and the pixels many: a matrix product per pixel is all overhead.
Pixels therefore stay the innermost axis and the work is plain elementwise arithmetic over them, one key at a time.
Axes: B batch, T tokens, D width, N heads, d channels of a head, H and W of the LR image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion.network.parts import ChannelNorm


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
        self.norm = ChannelNorm(width)
        self.project = nn.Conv2d(width, 3 * inner, 1)
        self.out = nn.Conv2d(inner, width, 1)

    def forward(self, tokens_BTDHW: Tensor) -> Tensor:
        """(B, T, D, H, W) -> what to add to it."""
        batch = tokens_BTDHW.shape[0]
        projected = self.project(self.norm(tokens_BTDHW.flatten(0, 1)))
        query, key, value = projected.unflatten(1, (3, self.heads, -1)).unflatten(0, (batch, -1)).unbind(dim=2)
        mixed_BTNdHW = attend(query, key, value)
        return self.out(mixed_BTNdHW.flatten(2, 3).flatten(0, 1)).unflatten(0, (batch, -1))
