"""Tiles along one axis by their laws: kept, feathered and those of a grid, each planned a second time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.tiling import (
    RAMP,
    FeatheredSpan,
    KeptSpan,
    Tile,
    most_touched,
    plan_feathered_spans,
    plan_kept_spans,
    plan_kept_tiles,
    shared_part,
    smallest_feathered_tile,
    touched_tiles,
)

MULTIPLES = st.sampled_from([1, 3, 8, 16])


def up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


@given(length=st.integers(1, 400), tile=st.integers(1, 90), overlap=st.integers(0, 30))
def test_spans_step_by_what_they_keep(length: int, tile: int, overlap: int) -> None:
    """Without windows to keep, the plan is this one: read a tile, keep its middle, go on where keeping ended."""
    side = max(tile, 2 * overlap + 1)
    expected, kept = list[KeptSpan](), 0
    while kept < length:
        start = 0 if length <= side else max(0, kept - overlap)
        stop = min(length, start + side)
        keep_stop = length if stop == length else stop - overlap
        expected.append(KeptSpan(start, stop, kept, keep_stop))
        kept = keep_stop
    assert plan_kept_spans(length, tile, overlap) == expected
    assert plan_kept_spans(length, tile, overlap, 1) == expected


@given(
    length=st.integers(1, 600),
    tile=st.integers(1, 120),
    overlap=st.integers(0, 40),
    multiple=st.sampled_from([2, 8, 16]),
)
def test_tiles_are_as_large_as_asked_or_the_least_that_keeps_something(
    length: int, tile: int, overlap: int, multiple: int
) -> None:
    spans = plan_kept_spans(length, tile, overlap, multiple)
    side, margin = up(max(tile, 2 * overlap + multiple), multiple), up(overlap, multiple)
    if side <= 2 * margin:  # rounding up the margins has eaten the tile: one of twice the size does
        side *= 2
    if length <= side:
        assert spans == [KeptSpan(0, length, 0, length)]
        return
    assert all(span.stop - span.start == side for span in spans[:-1])
    assert spans[-1].stop - spans[-1].start <= side
    for one, other in itertools.pairwise(spans):
        assert other.keep_start == one.keep_stop == one.stop - margin
        assert other.start == max(0, other.keep_start - margin)


@given(height=st.integers(1, 200), width=st.integers(1, 200), multiple=st.sampled_from([1, 8]))
def test_tiles_are_rows_times_columns(height: int, width: int, multiple: int) -> None:
    rows, columns = (plan_kept_spans(side, 37, 5, multiple) for side in (height, width))
    assert plan_kept_tiles(height, width, 37, 5, multiple) == [Tile(row, column) for row in rows for column in columns]
    if multiple == 1:
        assert plan_kept_tiles(height, width, 37, 5) == plan_kept_tiles(height, width, 37, 5, 1)


@settings(max_examples=300, deadline=None)
@given(
    length=st.integers(1, 700),
    tile=st.integers(0, 200),
    margin=st.integers(0, 30),
    multiple=MULTIPLES,
    ramp=st.sampled_from([2, 8, 12]),
)
def test_spans_are_as_few_as_the_overlap_allows(length: int, tile: int, margin: int, multiple: int, ramp: int) -> None:
    spans = plan_feathered_spans(length, tile, margin, multiple, ramp)
    side = max(up(tile, multiple), smallest_feathered_tile(margin, multiple, ramp))
    if tile == 0 or length < side + multiple:  # what is left over would not be worth a tile
        assert spans == [FeatheredSpan(0, length, 0, 0, length, length)]
        return
    least = 2 * margin + ramp
    assert all(span.stop - span.start == side for span in spans[:-1])
    assert side <= spans[-1].stop - spans[-1].start < side + multiple
    shared = [one.stop - other.start for one, other in itertools.pairwise(spans)]
    assert all(least <= overlap < least + multiple for overlap in shared[:-1]), "more only before the last"
    assert shared[-1] >= least
    assert len(spans) == 1 + -(-((length - side) // multiple * multiple) // ((side - least) // multiple * multiple))
    for one, other in itertools.pairwise(spans):
        assert (one.fall_start, one.high) == (other.low, other.rise_end) == (other.low, other.low + ramp)
        assert one.stop - one.high >= margin
        assert other.low - other.start >= margin
        assert 0 <= (one.stop - one.high) - (other.low - other.start) <= 1, "the ramp lies in the middle"
    assert (spans[0].low, spans[0].rise_end) == (0, 0)
    assert (spans[-1].fall_start, spans[-1].high, spans[-1].stop) == (length, length, length)


@given(margin=st.integers(0, 40), multiple=MULTIPLES, ramp=st.integers(1, 16))
def test_the_smallest_tile_has_room_for_both_overlaps(margin: int, multiple: int, ramp: int) -> None:
    """Also where the last tile begins a step of one multiple after the one before it."""
    tile = smallest_feathered_tile(margin, multiple, ramp)
    least = 2 * margin + ramp
    assert tile % multiple == 0
    assert least + max(least, 2 * ramp) + 2 * multiple <= tile < least + max(least, 2 * ramp) + 3 * multiple
    for length in range(tile + multiple, tile + 4 * multiple + 2):
        spans = plan_feathered_spans(length, tile, margin, multiple, ramp)
        assert len(spans) > 1
        assert all(span.rise_end <= span.fall_start for span in spans)


@given(margin=st.integers(0, 40), multiple=MULTIPLES, length=st.integers(1, 400))
def test_what_is_not_said(margin: int, multiple: int, length: int) -> None:
    assert smallest_feathered_tile(margin, multiple) == smallest_feathered_tile(margin, multiple, RAMP)
    assert plan_feathered_spans(length, 60, margin) == plan_feathered_spans(length, 60, margin, 1, RAMP)


@pytest.mark.parametrize("scale", [1, 4])
def test_weights_rise_and_fall_in_even_steps(scale: int) -> None:
    ramp = (np.arange(3 * scale) + 0.5) / (3 * scale)
    flat = np.ones(5 * scale)
    expected = {
        FeatheredSpan(0, 20, 6, 9, 14, 17): [ramp, flat, 1 - ramp],
        FeatheredSpan(0, 20, 0, 0, 5, 8): [flat, 1 - ramp],
        FeatheredSpan(0, 20, 6, 9, 14, 14): [ramp, flat],
        FeatheredSpan(0, 20, 9, 9, 14, 14): [flat],
    }
    for span, parts in expected.items():
        found = span.weights(scale)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), np.concatenate(parts), atol=1e-6)


@given(start=st.integers(0, 200), length=st.integers(1, 90), side=st.integers(1, 40))
def test_a_grid_is_touched_where_pixels_lie(start: int, length: int, side: int) -> None:
    """Pixel by pixel: each of a span lies in one tile, at one place of it and at one of the span."""
    pixels = range(start, start + length)
    tiles = touched_tiles(start, length, side)
    assert list(tiles) == sorted({pixel // side for pixel in pixels})
    for tile in tiles:
        inside, outside = shared_part(tile, start, length, side)
        here = [pixel for pixel in pixels if pixel // side == tile]
        assert list(range(side))[inside] == [pixel - tile * side for pixel in here]
        assert list(range(length))[outside] == [pixel - start for pixel in here]


@given(length=st.integers(1, 90), side=st.integers(1, 40))
def test_no_span_touches_more_tiles_than_the_unluckiest(length: int, side: int) -> None:
    assert most_touched(length, side) == max(len(touched_tiles(start, length, side)) for start in range(side))


@given(
    length=st.integers(1, 300),
    tile=st.integers(1, 120),
    overlap=st.integers(0, 40),
    multiple=st.sampled_from([1, 8, 16]),
)
def test_tiles_cover_every_pixel_once_with_surroundings(length: int, tile: int, overlap: int, multiple: int) -> None:
    spans = plan_kept_spans(length, tile, overlap, multiple)
    kept = [x for span in spans for x in range(span.keep_start, span.keep_stop)]
    assert kept == list(range(length))
    for span in spans:
        assert span.start % multiple == 0
        assert span.keep_start - span.start >= min(overlap, span.keep_start)
        assert span.stop - span.keep_stop >= min(overlap, length - span.keep_stop)
