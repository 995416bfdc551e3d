"""A large tensor on the CPU and a function of small ones -> the function of the whole, tile by tile, Gaussian-blended.

The function may shrink or enlarge: sides are counted in latents, of which one is `inner` pixels going in and `outer`
coming out. Only tiles go to the device, so what the model holds does not depend on the image's size.
Axes: B batch (1), C channels, H and W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_VARIANCE = 0.01  # of the Gaussian, for a tile of length 1: the published refiners' own


@dataclass(frozen=True)
class Tiling:
    """Sides in latents; `overlap` is shared by neighbours."""

    tile: int
    overlap: int

    def starts(self, length: int) -> list[int]:
        """Where tiles begin; the last one is flush with the end."""
        if length <= self.tile:
            return [0]
        return [*range(0, length - self.tile, self.tile - self.overlap), length - self.tile]

    def count(self, height: int, width: int) -> int:
        """Tiles of an image of that many latents."""
        return len(self.starts(height)) * len(self.starts(width))

    def halved(self) -> Tiling:
        """For when memory does not suffice."""
        return Tiling(self.tile // 2, min(self.overlap, self.tile // 4))


def run_tiled(
    x_CHW: Tensor,
    run: Callable[[Tensor], Tensor],
    tiling: Tiling,
    *,
    inner: int = 1,
    outer: int = 1,
    tick: Callable[[], object],
) -> Tensor:
    """(C, inner h, inner w) -> (C', outer h, outer w) float32; `run` gets (1, C, .., ..) and answers likewise."""
    height, width = x_CHW.shape[-2] // inner, x_CHW.shape[-1] // inner
    rows, columns = min(tiling.tile, height), min(tiling.tile, width)
    weights_HW = _bell(rows * outer)[:, None] * _bell(columns * outer)
    sum_CHW: Tensor | None = None
    total_HW = torch.zeros(height * outer, width * outer)
    for top in tiling.starts(height):
        for left in tiling.starts(width):
            part_CHW = x_CHW[
                :, top * inner : (top + rows) * inner, left * inner : (left + columns) * inner
            ].contiguous()
            answer_CHW = run(part_CHW[None])[0].float().cpu()
            if sum_CHW is None:
                sum_CHW = torch.zeros(answer_CHW.shape[0], height * outer, width * outer)
            here = (
                slice(top * outer, (top + rows) * outer),
                slice(left * outer, (left + columns) * outer),
            )
            sum_CHW[(slice(None), *here)] += answer_CHW * weights_HW
            total_HW[here] += weights_HW
            tick()
    assert sum_CHW is not None
    return sum_CHW.div_(total_HW)


def _bell(length: int) -> Tensor:
    """A Gaussian over a tile's side, highest in the middle."""
    away = (torch.arange(length) - (length - 1) / 2) / length
    return torch.exp(-away.square() / (2 * _VARIANCE))
