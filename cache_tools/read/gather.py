"""Crops of cached items -> one batch; each tile is read once, however many crops of the batch touch it.

Legend: B patches, E experts, C channels, P patch side in LR pixels, T tiles that a patch can touch along one side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cache_tools.format.schema import FEAT, FEAT_SCALE, HR, LR, PROFILES, SR, TILE
from cache_tools.read.batch import PatchBatch
from cache_tools.read.item_file import tiles_of
from cache_tools.read.reader import expert_order
from imaging.scale import enlarged
from imaging.tiling import most_touched, shared_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache_tools.read.item_file import TileFile
    from cache_tools.read.reader import CacheReader
    from cache_tools.read.sampler import Crop


def gather(reader: CacheReader, crops: Sequence[Crop], patch: int, epoch: int, step: int) -> PatchBatch:
    """Read what the crops need and lay it side by side, in the types in which it is stored."""
    target = _allocate(reader, len(crops), patch)
    crops_of_tile: dict[tuple[str, int, int], list[int]] = {}
    for number, crop in enumerate(crops):
        for tile in tiles_of(crop.top, crop.left, patch, patch):
            crops_of_tile.setdefault((crop.item, *tile), []).append(number)
    for (item, tile_y, tile_x), numbers in crops_of_tile.items():
        file = reader.file(item)
        stored = file.tile((tile_y, tile_x), list(target))
        chosen = {name: _chosen(reader, file, name, array) for name, array in stored.items()}
        for number in numbers:
            _place(target, chosen, crops[number], number, (tile_y, tile_x), patch, reader.recipe.scale)
    # Where in its tiles a patch begins: dequantising on the device needs it to find each pixel's scale.
    origin_B2 = np.array([(crop.top % TILE, crop.left % TILE) for crop in crops], np.int64)
    tensors = {name: torch.from_numpy(array) for name, array in target.items()}
    return PatchBatch(
        lr_BCHW=tensors[LR],
        hr_BCHW=tensors[HR],
        sr_BECHW=tensors[SR],
        feats_BCHW=tensors.get(FEAT),
        scale_BTTC2=tensors.get(FEAT_SCALE),
        origin_B2=torch.from_numpy(origin_B2),
        dihedral_B=torch.tensor([crop.dihedral for crop in crops]),
        slices=reader.slices,
        items=tuple(crop.item for crop in crops),
        epoch=epoch,
        step=step,
    )


def _allocate(reader: CacheReader, count: int, patch: int) -> dict[str, np.ndarray]:
    """Arrays for a batch, left uninitialised: tiles cover a patch completely, so every pixel is overwritten."""
    profile = PROFILES[reader.recipe.profile]
    channels = sum(reader.channels.values())
    large = reader.recipe.scale * patch
    target = {
        LR: np.empty((count, 3, patch, patch), np.uint8),
        HR: np.empty((count, 3, large, large), np.uint8),
        SR: np.empty((count, len(reader.experts), 3, large, large), profile.sr),
    }
    if profile.features is not None and channels:
        target[FEAT] = np.empty((count, channels, patch, patch), profile.features)
        if profile.features == "u1":
            touched = most_touched(patch, TILE)
            # Zeros, as a patch may touch fewer tiles than the most possible.
            target[FEAT_SCALE] = np.zeros((count, touched, touched, channels, 2), np.float32)
    return target


def _chosen(reader: CacheReader, file: TileFile, name: str, array: np.ndarray) -> np.ndarray:
    """Of a tile, the chosen experts' part, in the chosen order."""
    entries = {expert.name: expert for expert in file.header.experts}
    if name not in {SR, FEAT, FEAT_SCALE} or tuple(entries) == tuple(reader.experts):
        return array
    if name == SR:
        return array[expert_order(file, reader.experts)]
    chosen = [entries[one] for one in reader.experts]
    index = np.concatenate([np.arange(one.first, one.first + one.channels) for one in chosen])
    return array[index] if name == FEAT else array[:, :, index]


def _place(
    target: dict[str, np.ndarray],
    tile_arrays: dict[str, np.ndarray],
    crop: Crop,
    number: int,
    tile: tuple[int, int],
    patch: int,
    scale: int,
) -> None:
    """Copy the part of a tile that a crop covers to where the crop has it."""
    rows_from, rows_to = shared_part(tile[0], crop.top, patch, TILE)
    columns_from, columns_to = shared_part(tile[1], crop.left, patch, TILE)
    for name, array in tile_arrays.items():
        if name == FEAT_SCALE:
            place = tile[0] - crop.top // TILE, tile[1] - crop.left // TILE
            target[name][number, place[0], place[1]] = array[0, 0]
            continue
        own = scale if name in {SR, HR} else 1
        target[name][(number, ..., enlarged(rows_to, own), enlarged(columns_to, own))] = array[
            (..., enlarged(rows_from, own), enlarged(columns_from, own))
        ]
