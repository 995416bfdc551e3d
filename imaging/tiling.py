"""A length and a tile size -> the spans to read along one axis and what each contributes; three kinds of tiles.

Kept: spans overlap, each pixel is taken from exactly one (experts, whose images and features must not be mixed).
Feathered: spans overlap and fade into each other with weights that sum to 1 (the fusion's final images).
Grid: fixed tiles side by side, of which a rectangle touches some (the chunks of a cache).
All lengths and positions are in LR pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RAMP = 8  # of a feathered seam: narrower shows as a line in smooth areas, wider costs context


@dataclass(frozen=True)
class KeptSpan:
    """Along one axis: read [start, stop), keep [keep_start, keep_stop)."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int

    @property
    def read(self) -> slice:
        """What is run, in the whole."""
        return slice(self.start, self.stop)

    @property
    def keep(self) -> slice:
        """What is kept, in the whole."""
        return slice(self.keep_start, self.keep_stop)

    @property
    def inner(self) -> slice:
        """What is kept, in what was run."""
        return slice(self.keep_start - self.start, self.keep_stop - self.start)


@dataclass(frozen=True)
class Tile:
    """A rectangle to run and the rectangle of it to keep, in pixels of the LR image: the spans' slices as pairs."""

    rows: KeptSpan
    columns: KeptSpan

    @property
    def read(self) -> tuple[slice, slice]:
        """(rows, columns) to run."""
        return self.rows.read, self.columns.read

    @property
    def keep(self) -> tuple[slice, slice]:
        """(rows, columns) to keep, in the whole image."""
        return self.rows.keep, self.columns.keep

    @property
    def inner(self) -> tuple[slice, slice]:
        """(rows, columns) to keep, in what was run."""
        return self.rows.inner, self.columns.inner


def effective_kept_tile(tile: int, overlap: int, multiple: int = 1) -> int:
    """What `plan_kept_spans` makes of a requested tile: whole multiples, and something left to keep."""
    tile = _round_up(max(tile, 2 * overlap + multiple), multiple)
    while tile <= 2 * _round_up(overlap, multiple):  # both margins rounded up leave nothing to keep
        tile *= 2
    return tile


def plan_kept_spans(length: int, tile: int, overlap: int, multiple: int = 1) -> list[KeptSpan]:
    """Cover `length` by spans of at most `tile` pixels (rounded up to the multiple).

    Every kept part is surrounded by at least `overlap` pixels of real image (or the image's own edge), and spans start
    at multiples of the network's window, so that windows fall where they would in the whole image.
    """
    tile = effective_kept_tile(tile, overlap, multiple)
    margin = _round_up(overlap, multiple)
    if length <= tile:
        return [KeptSpan(0, length, 0, length)]
    spans: list[KeptSpan] = []
    kept = 0
    while kept < length:
        start = max(0, kept - margin)
        stop = min(length, start + tile)
        keep_stop = length if stop == length else stop - margin
        spans.append(KeptSpan(start, stop, kept, keep_stop))
        kept = keep_stop
    return spans


def plan_kept_tiles(height: int, width: int, tile: int, overlap: int, multiple: int = 1) -> list[Tile]:
    """Cover an image of height x width; row by row."""
    columns = plan_kept_spans(width, tile, overlap, multiple)
    return [Tile(row, column) for row in plan_kept_spans(height, tile, overlap, multiple) for column in columns]


@dataclass(frozen=True)
class FeatheredSpan:
    """Along one axis: read [start, stop); count in [low, high), in full from `rise_end` to `fall_start`."""

    start: int
    stop: int
    low: int
    rise_end: int
    fall_start: int
    high: int

    def weights(self, scale: int) -> Tensor:
        """float32 over [low, high) at `scale` times the size; neighbours' weights add up to 1."""
        rise, fall = (self.rise_end - self.low) * scale, (self.high - self.fall_start) * scale
        weights = torch.ones((self.high - self.low) * scale)
        if rise:
            weights[:rise] = _ramp(rise)
        if fall:
            weights[-fall:] = 1 - _ramp(fall)
        return weights


def smallest_feathered_tile(margin: int, multiple: int, ramp: int = RAMP) -> int:
    """The least tile in which both overlaps find room, also where the last tile begins right after the one before."""
    return _round_up(2 * margin + ramp + max(2 * margin + ramp, 2 * ramp) + 2 * multiple, multiple)


def effective_feathered_tile(tile: int, margin: int, multiple: int) -> int:
    """What `plan_feathered_spans` makes of a requested tile: whole multiples, room for both overlaps; 0 stays."""
    return max(_round_up(tile, multiple), smallest_feathered_tile(margin, multiple)) if tile else 0


def plan_feathered_spans(
    length: int, tile: int, margin: int, multiple: int = 1, ramp: int = RAMP
) -> list[FeatheredSpan]:
    """Cover `length`; a tile of 0, or one that the length fits into, is a single span. Spans start at multiples.

    Neighbours share 2 margin + ramp pixels: `margin` of each lacks context and has weight 0, over the `ramp` between
    them one fades into the other.
    """
    if tile == 0 or length <= tile:
        return [FeatheredSpan(0, length, 0, 0, length, length)]
    tile = max(_round_up(tile, multiple), smallest_feathered_tile(margin, multiple, ramp))
    if length <= tile:
        return [FeatheredSpan(0, length, 0, 0, length, length)]
    step = (tile - 2 * margin - ramp) // multiple * multiple
    starts = list(range(0, length - tile, step))
    last = (length - tile) // multiple * multiple  # flush with the far edge, or reaching a little beyond a whole tile
    starts += [last] if not starts or last > starts[-1] else []
    stops = [*(start + tile for start in starts[:-1]), length]
    seams = [(left_stop + start - ramp) // 2 for start, left_stop in zip(starts[1:], stops, strict=False)]
    spans: list[FeatheredSpan] = []
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        low = seams[index - 1] if index else 0
        rise_end = low + ramp if index else 0
        fall_start = seams[index] if index < len(seams) else length
        high = fall_start + ramp if index < len(seams) else length
        spans.append(FeatheredSpan(start, stop, low, rise_end, fall_start, high))
    return spans


def touched_tiles(start: int, length: int, side: int) -> range:
    """Along one axis of a grid of tiles: the numbers of those that [start, start + length) touches."""
    return range(start // side, (start + length - 1) // side + 1)


def most_touched(length: int, side: int) -> int:
    """How many tiles of a grid a span of that length touches at most, wherever it starts."""
    return (length + 2 * side - 2) // side


def shared_part(tile: int, start: int, length: int, side: int) -> tuple[slice, slice]:
    """What tile number `tile` and [start, start + length) have in common: its place in the tile, and in the span."""
    low, high = max(tile * side, start), min((tile + 1) * side, start + length)
    return slice(low - tile * side, high - tile * side), slice(low - start, high - start)


def _ramp(length: int) -> Tensor:
    # Sampled at pixel centres, so that the seam lies in the middle and neither tile weighs more.
    return (torch.arange(length) + 0.5) / length


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
