"""An image of any size from 1x1 up -> the same image continued by reflection to the size a network needs.

Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from experts.spec import Padding


def padded_length(length: int, padding: Padding) -> int:
    """The next multiple, and at least the minimum."""
    wanted = max(length, padding.minimum)
    # Not -(-wanted // multiple): ONNX divides negative whole numbers towards zero.
    return (wanted + padding.multiple - 1) // padding.multiple * padding.multiple


def pad_right_bottom(x_BCHW: Tensor, padding: Padding) -> Tensor:
    """(B, C, H, W) -> (B, C, H', W'): as torch and NumPy pad where they can, and defined for every size."""
    height, width = x_BCHW.shape[-2:]
    wanted_height, wanted_width = padded_length(height, padding), padded_length(width, padding)
    if padding.mode == "zeros":
        return torch.nn.functional.pad(x_BCHW, (0, wanted_width - width, 0, wanted_height - height)).clone()
    repeat_ends = padding.mode == "symmetric"
    rows = mirrored_positions(height, wanted_height, repeat_ends=repeat_ends)
    columns = mirrored_positions(width, wanted_width, repeat_ends=repeat_ends)
    # Always a copy: some networks scale their input in place.
    return x_BCHW.index_select(-2, rows.to(x_BCHW.device)).index_select(-1, columns.to(x_BCHW.device))


def mirrored_positions(length: int, wanted: int, *, repeat_ends: bool = False) -> Tensor:
    """0, 1, ..., n-1, n-2, ..., 0, 1, ...: as many as wanted, swinging between the ends.

    With `repeat_ends` the ends count twice: 0, 1, ..., n-1, n-1, n-2, ..., 0, 0, 1, ...
    """
    positions = torch.arange(wanted)
    period = 2 * length if repeat_ends else max(1, 2 * (length - 1))
    swing = positions % period
    back = period - 1 - swing if repeat_ends else period - swing
    return torch.where(swing < length, swing, back)
