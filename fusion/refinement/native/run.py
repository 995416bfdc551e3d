"""A fused image, its LR image and a seed -> what the native refiner adds to it, tile by tile, equal to the whole.

Axes: B batch (1), C channels, H and W of the image, h and w of the LR image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from fusion.refinement.native.consistency import unseen
from fusion.refinement.native.flatness import allowance
from fusion.refinement.native.noise import noise_at
from imaging.device import is_out_of_memory
from imaging.refusal import Refusal
from imaging.resize import downscale
from imaging.scale import SCALE, enlarged
from imaging.tiling import Tile, plan_kept_tiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fusion.refinement.native.open import NativeRefiner
    from fusion.refinement.presets import NativePreset

DEFAULT_SEED = 0  # runs repeat without a seed


def change_of(
    refiner: NativeRefiner,
    fused_CHW: Tensor,
    lr_CHW: Tensor | None,
    seed: int | None,
    tick: Callable[[], object],
    warn: Callable[[str], object],
) -> Tensor:
    """(3, H, W) float32 on the CPU; the LR image does not see it. Without an LR image, the fused one is reduced."""
    height, width = fused_CHW.shape[-2:]
    whole_CHW = _padded(fused_CHW.clamp(0, 1), SCALE)
    small_CHW = downscale(whole_CHW[None])[0] if lr_CHW is None else lr_CHW
    down, right = (side // SCALE for side in whole_CHW.shape[-2:])
    change_CHW = _in_tiles(refiner, whole_CHW, small_CHW, DEFAULT_SEED if seed is None else seed, tick, warn)
    change_CHW = change_CHW[:, : SCALE * down, : SCALE * right] * allowance(whole_CHW[None])[0]
    return unseen(change_CHW)[:, :height, :width]


def count_native_tiles(preset: NativePreset, height: int, width: int) -> int:
    """How many calls of the network an image of that size takes."""
    return len(_tiles(preset, preset.tile, -(-height // SCALE), -(-width // SCALE)))


def _tiles(preset: NativePreset, tile: int, height: int, width: int) -> list[Tile]:
    down, across = (-(-side // preset.multiple) * preset.multiple for side in (height, width))
    return plan_kept_tiles(down, across, tile, preset.margin, preset.multiple)


def _in_tiles(
    refiner: NativeRefiner,
    whole_CHW: Tensor,
    small_CHW: Tensor,
    seed: int,
    tick: Callable[[], object],
    warn: Callable[[str], object],
) -> Tensor:
    """The network's answer; when memory does not suffice, in tiles of half the side."""
    preset = refiner.preset
    small_CHW, whole_CHW = _padded(small_CHW, preset.multiple), _padded(whole_CHW, SCALE * preset.multiple)
    tile = preset.tile
    while True:
        tiles = _tiles(preset, tile, *small_CHW.shape[-2:])
        try:
            answer_CHW = torch.empty_like(whole_CHW)
            for one in tiles:
                _run(refiner, one, whole_CHW, small_CHW, seed, answer_CHW)
                tick()
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except block, so that the failed call's tensors are no longer held by its traceback.
        if tile // 2 < 2 * preset.margin:
            cure = "free memory, or --device cpu"
            raise Refusal(f"out of memory even in tiles of {tile} LR pixels", where="the native refiner", cure=cure)
        warn(f"the native refiner: out of memory at tiles of {tile} LR pixels; went on with tiles of {tile // 2}")
        tile //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if not bool(torch.isfinite(answer_CHW).all()):
        raise Refusal("gave NaN or infinity", where="the native refiner", cure="run it with --device cpu")
    return answer_CHW


def _run(
    refiner: NativeRefiner, tile: Tile, whole_CHW: Tensor, small_CHW: Tensor, seed: int, answer_CHW: Tensor
) -> None:
    """One tile into its place."""
    rows, columns = tile.rows, tile.columns
    noise_CHW = noise_at(seed, rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
    parts = (whole_CHW[(..., *map(enlarged, tile.read))], small_CHW[(..., *tile.read)], noise_CHW)
    change_BCHW = refiner.model(*(part[None].to(refiner.device) for part in parts))
    kept_CHW = change_BCHW[0].float().cpu()[(..., *map(enlarged, tile.inner))]
    answer_CHW[(..., *map(enlarged, tile.keep))] = kept_CHW


def _padded(image_CHW: Tensor, multiple: int) -> Tensor:
    """Up to the multiple, the last pixel going on."""
    down, right = (-side % multiple for side in image_CHW.shape[-2:])
    return F.pad(image_CHW[None], (0, right, 0, down), mode="replicate")[0] if down or right else image_CHW
