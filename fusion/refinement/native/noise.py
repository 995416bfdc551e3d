"""A seed and a place -> noise, (48, H, W) at LR size: the same however the image is cut into tiles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fusion.refinement.native.network import PACKED

_BLOCK = 32  # LR pixels a side, drawn at a time: changing it changes every seed's texture


def noise_at(seed: int, top: int, left: int, height: int, width: int) -> Tensor:
    """A pure function of the seed and of each pixel's place in the image, not of the image's size."""
    rows = range(top // _BLOCK, -(-(top + height) // _BLOCK))
    columns = range(left // _BLOCK, -(-(left + width) // _BLOCK))
    bands = [np.concatenate([_block(seed, row, column) for column in columns], axis=2) for row in rows]
    down, right = top - rows.start * _BLOCK, left - columns.start * _BLOCK
    whole = np.concatenate(bands, axis=1)[:, down : down + height, right : right + width]
    return torch.from_numpy(np.ascontiguousarray(whole))


def _block(seed: int, row: int, column: int) -> np.ndarray:
    return np.random.default_rng([seed, row, column]).standard_normal((PACKED, _BLOCK, _BLOCK), dtype=np.float32)
