"""A large image -> overlapping tiles with feathered weights that sum to 1, joined again band by band, top to bottom.

Neighbouring spans share 2 margin + ramp pixels: `margin` of each lacks context and weighs nothing, over the `ramp`
between them one fades into the other (all in LR pixels). Only one band of the output is held: what is finished is
turned into its final form at once (`finish`), and where tiles overlap only the faded sums are kept.
Axes: K layers, H and W of a tile's answer or of the band, at the experts' scale.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from imaging.tiling import FeatheredSpan

    RunTile = Callable[[FeatheredSpan, FeatheredSpan], Tensor]
    Finish = Callable[[Tensor], Tensor]


def assemble(
    rows: Sequence[FeatheredSpan],
    columns: Sequence[FeatheredSpan],
    run_tile: RunTile,
    finish: Finish,
    scale: int = SCALE,
) -> Iterator[Tensor]:
    """Yield bands (K', h, sW) as `finish` made them; together they are the image."""
    above_KHW: Tensor | None = None
    for row, next_row in zip_longest(rows, rows[1:]):
        band = _Band(row, next_row, columns[-1].stop, above_KHW, finish, scale)
        left_KHW: Tensor | None = None
        for column, next_column in zip_longest(columns, columns[1:]):
            block_KHW = _faded(run_tile(row, column), row, column, scale)
            if left_KHW is not None:
                block_KHW[..., : left_KHW.shape[-1]] += left_KHW
            done = scale * ((next_column.low if next_column else column.high) - column.low)
            # Cloned, or the view would keep the whole block in memory while the next tile runs.
            left_KHW = block_KHW[..., done:].clone() if next_column else None
            band.add(block_KHW[..., :done], scale * column.low)
        above_KHW = band.below_KHW
        assert band.done_KHW is not None
        yield band.done_KHW


class _Band:
    """One row of tiles on its way to finished rows, and the faded rows that the next row of tiles completes."""

    def __init__(
        self,
        row: FeatheredSpan,
        next_row: FeatheredSpan | None,
        width: int,
        above_KHW: Tensor | None,
        finish: Finish,
        scale: int,
    ) -> None:
        self._rows = scale * ((next_row.low if next_row else row.high) - row.low)
        self._overlap = scale * (row.high - next_row.low) if next_row else 0
        self._width, self._above_KHW, self._finish = scale * width, above_KHW, finish
        self.done_KHW: Tensor | None = None
        self.below_KHW: Tensor | None = None

    def add(self, block_KHW: Tensor, left: int) -> None:
        """Take the columns that are complete from left to right."""
        here = slice(left, left + block_KHW.shape[-1])
        if self._above_KHW is not None:
            block_KHW[:, : self._above_KHW.shape[-2]] += self._above_KHW[..., here]
        if self._overlap:
            if self.below_KHW is None:
                self.below_KHW = block_KHW.new_empty(block_KHW.shape[0], self._overlap, self._width)
            self.below_KHW[..., here] = block_KHW[:, self._rows :]
        done = self._finish(block_KHW[:, : self._rows])
        if self.done_KHW is None:
            self.done_KHW = done.new_empty(done.shape[0], self._rows, self._width)
        self.done_KHW[..., here] = done


def _faded(answer_KHW: Tensor, row: FeatheredSpan, column: FeatheredSpan, scale: int) -> Tensor:
    """The part of a tile's answer that counts, weighed towards its neighbours; a fresh tensor."""
    top, left = row.low - row.start, column.low - column.start
    part_KHW = answer_KHW[
        :,
        scale * top : scale * (top + row.high - row.low),
        scale * left : scale * (left + column.high - column.low),
    ]
    weights_HW = row.weights(scale)[:, None] * column.weights(scale)
    return part_KHW * weights_HW.to(part_KHW)


def whole(
    rows: Sequence[FeatheredSpan], columns: Sequence[FeatheredSpan], run_tile: RunTile, scale: int = SCALE
) -> Tensor:
    """The same in one piece, as float."""
    return torch.cat(list(assemble(rows, columns, run_tile, lambda part_KHW: part_KHW, scale)), dim=-2)
