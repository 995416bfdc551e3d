"""A tile of any size -> its answer, in smaller tiles when memory does not suffice, and from then on.

Axes: B batch (1), K layers, H and W of the LR tile (times the experts' scale in answers).
"""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

import torch

from fusion.inference.tiles import whole
from imaging.device import is_out_of_memory
from imaging.refusal import Refusal
from imaging.scale import SCALE
from imaging.tiling import plan_feathered_spans, smallest_feathered_tile

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fusion.inference.ensemble import Place
    from imaging.tiling import FeatheredSpan

log = logging.getLogger(__name__)


class OutOfMemoryRetry:
    """Runs tiles as large as memory allows; `limit` is the size found, `events` the messages for the user."""

    def __init__(
        self, run_tile: Callable[[Tensor, Place], Tensor], margin: int, multiple: int, scale: int = SCALE
    ) -> None:
        self._run_tile, self._margin, self._multiple, self._scale = run_tile, margin, multiple, scale
        self.limit: int | None = None
        self.events: list[str] = []

    def run(self, lr_BCHW: Tensor, place: Place) -> Tensor:
        """Layers (K, sH, sW) of the tile."""
        while True:
            side = max(lr_BCHW.shape[-2:])
            # A part may reach up to one multiple beyond the tile, to begin where windows do.
            if self.limit is not None and side >= self.limit + self._multiple:
                return self._in_parts(lr_BCHW, place, self.limit)
            try:
                return self._run_tile(lr_BCHW, place)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).split("\n")[0][:120] or type(error).__name__
            # Outside the except block, so that the failed call's tensors are no longer held by its traceback.
            self._shrink(side, place, reason)

    def _in_parts(self, lr_BCHW: Tensor, place: Place, tile: int) -> Tensor:
        rows = plan_feathered_spans(lr_BCHW.shape[-2], tile, self._margin, self._multiple)
        columns = plan_feathered_spans(lr_BCHW.shape[-1], tile, self._margin, self._multiple)

        def run_part(row: FeatheredSpan, column: FeatheredSpan) -> Tensor:
            part_BCHW = lr_BCHW[..., row.start : row.stop, column.start : column.stop]
            return self.run(part_BCHW, place.moved(row.start, column.start))

        return whole(rows, columns, run_part, self._scale)

    def _shrink(self, side: int, place: Place, reason: str) -> None:
        """Half the size, down to the least tile that leaves room for the context."""
        least = smallest_feathered_tile(self._margin, self._multiple)
        if side < least + self._multiple:
            cure = "free memory, use fewer experts, or --device cpu"
            raise Refusal(f"out of memory even in tiles of {side} ({reason})", where=place.item, cure=cure)
        self.limit = max(least, min(side, self.limit or side) // 2 // self._multiple * self._multiple)
        event = f"{place.item}: out of memory at tiles of {side}; went on with tiles of {self.limit}"
        self.events.append(event)
        log.warning("%s", event)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
