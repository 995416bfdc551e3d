"""float images in [0, 1] -> whole grey levels: the single place where the project clamps and rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from imaging.layers import at_least_float32
from imaging.refusal import Refusal


def quantize_u8(rgb: Tensor) -> Tensor:
    """Any float shape -> uint8, 0..255: clamped to [0, 1], times 255, rounded to nearest (ties to even)."""
    return _levels(rgb, 255).to(torch.uint8)


def quantize_u16(rgb: Tensor) -> Tensor:
    """Any float shape -> int32 holding 0..65535 (torch has little arithmetic for uint16), rounded the same way."""
    return _levels(rgb, 65535).to(torch.int32)


def _levels(rgb: Tensor, top: int) -> Tensor:
    if not rgb.is_floating_point():
        raise ValueError(f"expected a float image in [0, 1], got {rgb.dtype}")
    if not bool(torch.isfinite(rgb).all()):
        bad = int((~torch.isfinite(rgb)).sum())
        raise Refusal(
            f"{bad} of {rgb.numel()} values are not numbers or infinite",
            where="image to be rounded",
            cure="look for an overflow upstream: run at float32 precision",
        )
    # Half precisions cannot represent all levels; float32 can, exactly, up to 65535.
    return (at_least_float32(rgb).clamp(0, 1) * top).round()
