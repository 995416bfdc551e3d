"""Patches as stored -> the fusion network's input, as float on the device.

Legend: B patches, E experts, C channels, H and W LR height and width (equal in patches), T tiles that a patch can
touch along one side.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cache_tools.format.codec import decode_image
from cache_tools.format.schema import TILE
from imaging.dihedral import transform_each
from imaging.tiling import shared_part, touched_tiles

Segment = tuple[int, int, int]

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Slice:
    """One expert's channels inside `feats_BCHW`; `channels` 0 means that it has no features here."""

    name: str
    first: int
    channels: int


@dataclass(frozen=True)
class PatchBatch:
    """Aligned patches as the cache stores them, small enough to travel between processes; s is its experts' scale.

    lr_BCHW     uint8    (B, 3, H, W)
    hr_BCHW     uint8    (B, 3, sH, sW)
    sr_BECHW    uint8 or float32    (B, E, 3, sH, sW)
    feats_BCHW  uint8, float16 or float32    (B, sum of C, H, W), or None without features
    scale_BTTC2 float32  (B, T, T, sum of C, 2): (scale, offset) of each tile under uint8 features, else None
    origin_B2   int64    where in its first tile each patch begins: rows, columns
    dihedral_B  int64    the flip or rotation to apply on the device; 0 where the item itself is stored turned
    items       the item that each patch comes from; `epoch` and `step` number this batch
    """

    lr_BCHW: Tensor
    hr_BCHW: Tensor
    sr_BECHW: Tensor
    feats_BCHW: Tensor | None
    scale_BTTC2: Tensor | None
    origin_B2: Tensor
    dihedral_B: Tensor
    slices: tuple[Slice, ...]
    items: tuple[str, ...]
    epoch: int
    step: int

    def pin_memory(self) -> PatchBatch:
        """Called by a DataLoader with pin_memory=True."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str) -> PatchBatch:
        """Move every tensor, overlapped with computation where memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Any) -> PatchBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class FusionBatch:
    """The fusion network's input, all float32 (features in the requested dtype) on one device.

    lr_BCHW   (B, 3, H, W) in [0, 1]
    hr_BCHW   (B, 3, sH, sW) in [0, 1], or None where the cache has no HR
    sr_BECHW  (B, E, 3, sH, sW), nominally in [0, 1], in the order of `experts`
    feats     expert name -> (B, C, H, W); an expert without features has no entry; empty without any
    """

    lr_BCHW: Tensor
    hr_BCHW: Tensor | None
    sr_BECHW: Tensor
    feats: Mapping[str, Tensor]
    experts: tuple[str, ...]
    items: tuple[str, ...]
    epoch: int = 0
    step: int = 0


def dequantize(
    batch: PatchBatch, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> FusionBatch:
    """Move the stored batch, flip and rotate every tensor of a patch alike, decode; features come in `dtype`."""
    # Read before the move to the device: reading them there would wait for the copy to finish.
    turns = batch.dihedral_B.tolist()
    origins = batch.origin_B2.tolist()
    batch = batch.to(device)
    feats: dict[str, Tensor] = {}
    if batch.feats_BCHW is not None:
        # Turned while still small (uint8), then converted; always a copy, since the tiles are scaled in place.
        feats_BCHW = transform_each(batch.feats_BCHW, turns).to(torch.float32, copy=True)
        if batch.scale_BTTC2 is not None:
            for feat_CHW, scale_TTC2, origin, turn in zip(feats_BCHW, batch.scale_BTTC2, origins, turns, strict=True):
                _scale_tiles(feat_CHW, scale_TTC2, origin, turn)
        feats_BCHW = feats_BCHW.to(dtype)
        feats = {one.name: feats_BCHW[:, one.first : one.first + one.channels] for one in batch.slices if one.channels}
    return FusionBatch(
        lr_BCHW=decode_image(transform_each(batch.lr_BCHW, turns)),
        hr_BCHW=decode_image(transform_each(batch.hr_BCHW, turns)),
        sr_BECHW=decode_image(transform_each(batch.sr_BECHW, turns)),
        feats=feats,
        experts=tuple(one.name for one in batch.slices),
        items=batch.items,
        epoch=batch.epoch,
        step=batch.step,
    )


def _scale_tiles(feat_CHW: Tensor, scale_TTC2: Tensor, origin: Sequence[int], turn: int) -> None:
    """In place, each tile's part of a patch that is already turned: code * scale + offset.

    In place because the features are by far the largest tensors of a batch.
    """
    size = feat_CHW.shape[-1]
    rows, columns, swapped = _turned(_segments(origin[0], size), _segments(origin[1], size), turn, size)
    for row_begin, row_end, row in rows:
        for column_begin, column_end, column in columns:
            scale_C, offset_C = scale_TTC2[(column, row) if swapped else (row, column)].unbind(-1)
            part = feat_CHW[:, row_begin:row_end, column_begin:column_end]
            part.mul_(scale_C[:, None, None]).add_(offset_C[:, None, None])


def _segments(origin: int, size: int) -> list[Segment]:
    """Along one axis of a patch: which pixels lie in which tile."""
    tiles = touched_tiles(origin, size, TILE)
    places = [shared_part(tile, origin, size, TILE)[1] for tile in tiles]
    return [(place.start, place.stop, tile) for place, tile in zip(places, tiles, strict=True)]


def _turned(
    rows: list[Segment], columns: list[Segment], turn: int, size: int
) -> tuple[list[Segment], list[Segment], bool]:
    """Where the segments are after `dihedral.transform`, and whether rows of tiles have become columns."""
    # In the order of `dihedral.transform`: mirrored first, then turned.
    if turn >= 4:
        columns = _mirrored(columns, size)
    for _ in range(turn % 4):
        rows, columns = _mirrored(columns, size), rows
    return rows, columns, turn % 2 == 1


def _mirrored(segments: list[Segment], size: int) -> list[Segment]:
    return [(size - end, size - begin, tile) for begin, end, tile in segments]
