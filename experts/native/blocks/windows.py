"""Feature map <-> windows of it; which positions of a window may attend to each other; which windows are flat.

Any size is padded to whole windows; padded positions attend only to each other. Shifted windows are made by rolling the
map, so a window may hold parts that are no neighbours: these do not attend to each other either.
Legend: B batch, C channels, H and W height and width, N pixels of a window, M windows of an image, K
of them cut.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


def padded(height: int, width: int, window: int) -> tuple[int, int]:
    """The size in whole windows."""
    # Not -(-side // window): ONNX divides negative whole numbers towards zero.
    return (height + window - 1) // window * window, (width + window - 1) // window * window


def to_windows(x_BCHW: Tensor, window: int, shift: int) -> Tensor:
    """(B, C, H, W) -> (B*M, N, C); padded with zeros to whole windows, then rolled by `shift`."""
    batch, channels, height, width = x_BCHW.shape
    tall, wide = padded(height, width, window)
    if (tall, wide) != (height, width):
        x_BCHW = F.pad(x_BCHW, (0, wide - width, 0, tall - height))
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    if shift:
        x_BHWC = torch.roll(x_BHWC, (-shift, -shift), dims=(1, 2))
    parts = x_BHWC.reshape(batch, tall // window, window, wide // window, window, channels)
    return parts.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def from_windows(x_WNC: Tensor, size: tuple[int, int], window: int, shift: int) -> Tensor:
    """(B*M, N, C) -> (B, C, H, W), the inverse of `to_windows` for a map of `size`."""
    height, width = size
    tall, wide = padded(height, width, window)
    parts = x_WNC.reshape(-1, tall // window, wide // window, window, window, x_WNC.shape[-1])
    x_BHWC = parts.permute(0, 1, 3, 2, 4, 5).reshape(-1, tall, wide, x_WNC.shape[-1])
    if shift:
        x_BHWC = torch.roll(x_BHWC, (shift, shift), dims=(1, 2))
    return x_BHWC[:, :height, :width].permute(0, 3, 1, 2)


@lru_cache(maxsize=32)
def cut_windows(height: int, width: int, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """The windows that padding or rolling cut into pieces, and the attention masks within them.

    int (M,): each window's row in the second, or -1 where it is uncut; bool (cut, N, N). Only windows along two edges
    are cut, so this stays small for large images.
    """
    tall, wide = padded(height, width, window)
    rows = _pieces(tall, height, shift).view(-1, window)
    columns = _pieces(wide, width, shift).view(-1, window)
    cut_M = ((rows != rows[:, :1]).any(1)[:, None] | (columns != columns[:, :1]).any(1)[None]).flatten()
    row_M = torch.full_like(cut_M, -1, dtype=torch.long)
    row_M[cut_M] = torch.arange(int(cut_M.sum()))
    down, right = cut_M.nonzero()[:, 0] // len(columns), cut_M.nonzero()[:, 0] % len(columns)
    y_KN = rows[down].repeat_interleave(window, dim=1)
    x_KN = columns[right].repeat(1, window)
    # Four pieces at most, by where row and column come from; padding is a piece of its own.
    piece_KN = torch.where((y_KN < 0) | (x_KN < 0), -1, 2 * y_KN + x_KN)
    return row_M, piece_KN[:, :, None] == piece_KN[:, None, :]


def _pieces(long: int, length: int, shift: int) -> Tensor:
    """Along one axis, after rolling: 0 for what stayed in place, 1 for what was rolled round, -1 for padding."""
    position = (torch.arange(long) + shift) % long
    wrapped = torch.arange(long) >= long - shift
    return torch.where(position >= length, -1, wrapped.long())


def busy_windows(guide_B1HW: Tensor, window: int, shift: int, threshold: float) -> Tensor:
    """Grey image -> bool (B*M,): whether the standard deviation of a window's pixels exceeds `threshold`."""
    inside_B1HW = torch.ones_like(guide_B1HW)
    inside = to_windows(inside_B1HW, window, shift)[..., 0]
    grey = to_windows(guide_B1HW, window, shift)[..., 0]
    # A window of padding alone has no pixels; it counts as flat.
    count = inside.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (grey * inside).sum(dim=1, keepdim=True) / count
    variance = ((grey - mean).square() * inside).sum(dim=1) / count[:, 0]
    return variance > threshold**2
