"""Tiles of an expert's run by their laws: what is read, what is kept, and that no tile is larger than it must be."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from experts.tiles import KeptSpan, Tile, plan_kept_spans, plan_tiles


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
    rows, columns = (plan_kept_spans(side, 40, 8, multiple) for side in (height, width))
    assert plan_tiles(height, width, 40, 8, multiple) == [Tile(row, column) for row in rows for column in columns]
    if multiple == 1:
        assert plan_tiles(height, width, 40, 8) == plan_tiles(height, width, 40, 8, 1)
