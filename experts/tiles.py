"""A large image and a tile size -> the tiles to run and which part of each is kept.

Every kept part is surrounded by at least `overlap` pixels of real image (or the image's own edge), and tiles start
at multiples of the network's window, so that windows fall where they would in the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KeptSpan:
    """Along one axis: read [start, stop), keep [keep_start, keep_stop)."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True)
class Tile:
    """A rectangle to run and the rectangle of it to keep, in pixels of the LR image."""

    rows: KeptSpan
    columns: KeptSpan


def plan_kept_spans(length: int, tile: int, overlap: int, multiple: int = 1) -> list[KeptSpan]:
    """Cover `length` by spans of at most `tile` pixels (rounded up to the multiple)."""
    tile = -(-max(tile, 2 * overlap + multiple) // multiple) * multiple
    margin = -(-overlap // multiple) * multiple
    if length <= tile or tile - 2 * margin <= 0:
        return (
            [KeptSpan(0, length, 0, length)] if length <= tile else plan_kept_spans(length, 2 * tile, overlap, multiple)
        )
    spans: list[KeptSpan] = []
    kept = 0
    while kept < length:
        start = max(0, kept - margin)
        stop = min(length, start + tile)
        keep_stop = length if stop == length else stop - margin
        spans.append(KeptSpan(start, stop, kept, keep_stop))
        kept = keep_stop
    return spans


def plan_tiles(height: int, width: int, tile: int, overlap: int, multiple: int = 1) -> list[Tile]:
    """Cover an image of height x width; row by row."""
    columns = plan_kept_spans(width, tile, overlap, multiple)
    return [Tile(row, column) for row in plan_kept_spans(height, tile, overlap, multiple) for column in columns]
