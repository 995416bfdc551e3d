"""A length, a tile size and the context an answer needs -> overlapping spans whose feathered weights sum to 1.

Neighbouring spans share 2 margin + ramp pixels: `margin` of each lacks context and weighs nothing, over the `ramp`
between them one fades into the other. All figures in LR pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RAMP = 8


@dataclass(frozen=True)
class Span:
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


def _ramp(length: int) -> Tensor:
    return (torch.arange(length) + 0.5) / length


def smallest_tile(margin: int, multiple: int, ramp: int = RAMP) -> int:
    """The least tile in which both overlaps find room, also where the last tile begins right after the one before."""
    return _up(2 * margin + ramp + max(2 * margin + ramp, 2 * ramp) + 2 * multiple, multiple)


def plan_spans(length: int, tile: int, margin: int, multiple: int = 1, ramp: int = RAMP) -> list[Span]:
    """Cover `length`; a tile of 0, or one that the length fits into, is a single span. Spans start at multiples."""
    if tile == 0 or length <= tile:
        return [Span(0, length, 0, 0, length, length)]
    tile = max(_up(tile, multiple), smallest_tile(margin, multiple, ramp))
    if length <= tile:
        return [Span(0, length, 0, 0, length, length)]
    step = (tile - 2 * margin - ramp) // multiple * multiple
    starts = list(range(0, length - tile, step))
    last = (length - tile) // multiple * multiple  # flush with the far edge, or reaching a little beyond a whole tile
    starts += [last] if not starts or last > starts[-1] else []
    stops = [*(start + tile for start in starts[:-1]), length]
    seams = [(left_stop + start - ramp) // 2 for start, left_stop in zip(starts[1:], stops, strict=False)]
    spans: list[Span] = []
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        low = seams[index - 1] if index else 0
        rise_end = low + ramp if index else 0
        fall_start = seams[index] if index < len(seams) else length
        high = fall_start + ramp if index < len(seams) else length
        spans.append(Span(start, stop, low, rise_end, fall_start, high))
    return spans


def count_tiles(height: int, width: int, tile: int, margin: int, multiple: int = 1) -> int:
    """How many tiles an image takes."""
    return len(plan_spans(height, tile, margin, multiple)) * len(plan_spans(width, tile, margin, multiple))


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
