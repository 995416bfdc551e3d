"""Features and SR images as experts give them -> the types a profile stores, and back.

Legend: C channels, H and W LR height and width, T and U rows and columns of 32x32 tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from cache_tools.format.schema import TILE
from imaging.quantize import quantize_u8
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from cache_tools.format.schema import Profile

_LEVELS = 255
_HALF_MAX = 65504.0  # the largest finite float16


def quantize(feat_CHW: Tensor) -> tuple[Tensor, Tensor]:
    """Float features -> uint8 (C, H, W) and float32 (T, U, C, 2): per channel and tile, (scale, offset).

    The nearest of 256 steps between the tile's least and greatest value: no value moves by more than half a step.
    """
    _, height, width = feat_CHW.shape
    tiles_CTHUW = _as_tiles(feat_CHW)
    low_CTU = tiles_CTHUW.amin((2, 4))
    scale_CTU = (tiles_CTHUW.amax((2, 4)) - low_CTU) / _LEVELS
    # A constant tile has scale 0: its codes are 0 and the offset alone restores it, so any divisor will do.
    safe_CTU = torch.where(scale_CTU > 0, scale_CTU, torch.ones_like(scale_CTU))
    steps = (tiles_CTHUW - low_CTU[:, :, None, :, None]) / safe_CTU[:, :, None, :, None]
    # In place: float copies of all features at once are what limits the size of an image here.
    codes = steps.round_().clamp_(0, _LEVELS).to(torch.uint8)
    codes_CHW = codes.flatten(3, 4).flatten(1, 2)[:, :height, :width]
    return codes_CHW, torch.stack((scale_CTU, low_CTU), -1).permute(1, 2, 0, 3)


def dequantize_whole(codes_CHW: Tensor, scale_TUC2: Tensor) -> Tensor:
    """A whole image's uint8 features and their scales -> float32 (C, H, W)."""
    _, height, width = codes_CHW.shape
    scale_C, offset_C = (
        part.permute(2, 0, 1).repeat_interleave(TILE, 1)[:, :height].repeat_interleave(TILE, 2)[:, :, :width]
        for part in scale_TUC2.unbind(-1)
    )
    return torch.addcmul(offset_C, codes_CHW.float(), scale_C)


def encode_features(feat_CHW: Tensor, profile: Profile, *, where: str) -> tuple[Tensor, Tensor | None]:
    """Features -> what the profile stores, and the scales where it has any."""
    if profile.features == "u1":
        return quantize(feat_CHW)
    if profile.features == "<f4":
        return feat_CHW.float(), None
    if float(feat_CHW.abs().amax()) > _HALF_MAX:
        raise Refusal("features exceed what 16-bit floats hold", where=where, cure="use --profile compact or lossless")
    return feat_CHW.half(), None


def encode_sr(sr_CHW: Tensor, profile: Profile, *, where: str) -> Tensor:
    """An SR image (or several) -> uint8, rounded here and nowhere else, or float32 as it is."""
    if not bool(torch.isfinite(sr_CHW).all()):  # here, where expert and item are known
        raise Refusal("an SR image holds NaN or infinity", where=where, cure="run the expert with --precision fp32")
    return quantize_u8(sr_CHW) if profile.sr == "u1" else sr_CHW.float()


def decode_image(stored: Tensor) -> Tensor:
    """A stored image -> float32, uint8 scaled to [0, 1]."""
    return stored.float().div_(_LEVELS) if stored.dtype == torch.uint8 else stored.float()


def _as_tiles(feat_CHW: Tensor) -> Tensor:
    """(C, H, W) -> (C, T, 32, U, 32); edges are repeated outwards, which changes no tile's least or greatest value."""
    _, height, width = feat_CHW.shape
    padding = (0, -width % TILE, 0, -height % TILE)
    if any(padding):
        feat_CHW = F.pad(feat_CHW[None], padding, mode="replicate")[0]
    return feat_CHW.float().unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE))
