"""LR image (B, 3, H, W), float -> low, mid and high bands by an 8x8 block DCT with soft masks in zigzag order.

Axes: B batch, C = 3, y and x blocks, i and j pixels in a block, u and v coefficients, H and W of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import torch_dct
from torch import Tensor, nn

from fusion.network.bands.masks import AdaptiveCuts, soft_masks, split

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = 8


def dct_basis() -> Tensor:
    """The orthonormal DCT-II as a matrix, from torch-dct (which is right, but fails in half precision)."""
    return torch_dct.dct(torch.eye(BLOCK, dtype=torch.float64), norm="ortho").T.float()


def zigzag_positions() -> Tensor:
    """Each coefficient's rank along the zigzag path, as a position in [0, 1]."""
    places = [(u, v) for u in range(BLOCK) for v in range(BLOCK)]
    # Along each anti-diagonal the path turns: upwards on even ones, downwards on odd ones.
    places.sort(key=lambda uv: (sum(uv), uv[1] if sum(uv) % 2 == 0 else uv[0]))
    rank_UV = torch.empty(BLOCK, BLOCK)
    for rank, (u, v) in enumerate(places):
        rank_UV[u, v] = rank
    return rank_UV / (BLOCK * BLOCK - 1)


def blocks_of(image_BCHW: Tensor) -> Tensor:
    """Replicate the edges up to whole blocks and cut: (B, C, y, i, x, j)."""
    height, width = image_BCHW.shape[-2:]
    padded = F.pad(image_BCHW, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    return padded.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))


class DctBands(nn.Module):
    """Three bands along the zigzag; the cuts adapt to the image."""

    basis_UI: Tensor
    zigzag_UV: Tensor

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.cuts = AdaptiveCuts(start=(0.1, 0.4))
        self.register_buffer("basis_UI", dct_basis(), persistent=False)
        self.register_buffer("zigzag_UV", zigzag_positions(), persistent=False)

    def coefficients(self, image_BCHW: Tensor) -> Tensor:
        """The blocks' DCT: (B, C, y, u, x, v)."""
        return torch.einsum("ui,bcyixj,vj->bcyuxv", self.basis_UI, blocks_of(image_BCHW), self.basis_UI)

    def inverse(self, coefficients_BCyuxv: Tensor, size: tuple[int, int]) -> Tensor:
        """Coefficients -> image, cut to `size`."""
        blocks = torch.einsum("ui,bcyuxv,vj->bcyixj", self.basis_UI, coefficients_BCyuxv, self.basis_UI)
        return blocks.flatten(4, 5).flatten(2, 3)[..., : size[0], : size[1]]

    def forward(self, image_BCHW: Tensor) -> Sequence[Tensor]:
        """(B, 3, H, W) -> three bands of that shape which sum to it."""
        coefficients = self.coefficients(image_BCHW)
        low_BUV, _, high_BUV = soft_masks(self.zigzag_UV, self.cuts(image_BCHW), self.temperature)
        size = (image_BCHW.shape[2], image_BCHW.shape[3])
        low, high = (
            self.inverse(coefficients * mask_BUV[:, None, None, :, None, :], size) for mask_BUV in (low_BUV, high_BUV)
        )
        return split(image_BCHW, low, high)
