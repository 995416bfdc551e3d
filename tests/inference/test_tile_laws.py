"""Feathered tiles by their laws: as few as the overlap allows, ramps in steps of one pixel, bands of any form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.inference.tiles import (
    RAMP,
    FeatheredSpan,
    assemble,
    count_tiles,
    plan_feathered_spans,
    smallest_tile,
    whole,
)

MULTIPLES = st.sampled_from([1, 3, 8, 16])


def up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


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
    side = max(up(tile, multiple), smallest_tile(margin, multiple, ramp))
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
    tile = smallest_tile(margin, multiple, ramp)
    least = 2 * margin + ramp
    assert tile % multiple == 0
    assert least + max(least, 2 * ramp) + 2 * multiple <= tile < least + max(least, 2 * ramp) + 3 * multiple
    for length in range(tile + multiple, tile + 4 * multiple + 2):
        spans = plan_feathered_spans(length, tile, margin, multiple, ramp)
        assert len(spans) > 1
        assert all(span.rise_end <= span.fall_start for span in spans)


@given(margin=st.integers(0, 40), multiple=MULTIPLES, length=st.integers(1, 400))
def test_what_is_not_said(margin: int, multiple: int, length: int) -> None:
    assert smallest_tile(margin, multiple) == smallest_tile(margin, multiple, RAMP)
    assert plan_feathered_spans(length, 60, margin) == plan_feathered_spans(length, 60, margin, 1, RAMP)
    assert count_tiles(length, 150, 60, margin) == count_tiles(length, 150, 60, margin, 1)


@given(height=st.integers(1, 300), width=st.integers(1, 300), tile=st.integers(0, 90), multiple=MULTIPLES)
def test_tiles_are_counted_as_they_are_planned(height: int, width: int, tile: int, multiple: int) -> None:
    rows, columns = (plan_feathered_spans(side, tile, 5, multiple) for side in (height, width))
    assert count_tiles(height, width, tile, 5, multiple) == len(rows) * len(columns)


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


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    tile=st.integers(30, 60),
    margin=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_bands_are_the_weighted_sum_of_all_tiles(height: int, width: int, tile: int, margin: int, seed: int) -> None:
    """Tiles that do not agree, against NumPy adding each tile's whole contribution into the whole image."""
    rng = np.random.default_rng(seed)
    rows, columns = (plan_feathered_spans(side, tile, margin, 2) for side in (height, width))
    answers = {
        (row, column): rng.normal(size=(2, 4 * (row.stop - row.start), 4 * (column.stop - column.start)))
        for row in rows
        for column in columns
    }
    expected = np.zeros((2, 4 * height, 4 * width))
    for (row, column), answer in answers.items():
        weights = row.weights(4).numpy()[:, None] * column.weights(4).numpy()
        top, left = 4 * (row.low - row.start), 4 * (column.low - column.start)
        part = answer[:, top : top + len(weights), left : left + weights.shape[1]]
        expected[:, 4 * row.low : 4 * row.high, 4 * column.low : 4 * column.high] += part * weights
    given_ = {place: torch.from_numpy(answer.copy()) for place, answer in answers.items()}

    def ask(row: FeatheredSpan, column: FeatheredSpan) -> torch.Tensor:
        return given_[row, column]

    found = whole(rows, columns, ask)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert all(np.array_equal(given_[place].numpy(), answer) for place, answer in answers.items()), "left as they were"


def test_a_band_has_the_form_that_finish_gives_it() -> None:
    """Three layers in, one of levels out; each band is as high as the rows that no later tile touches."""
    rows, columns = plan_feathered_spans(120, 40, 4), plan_feathered_spans(90, 40, 4)
    sizes: list[tuple[int, ...]] = []

    def ask(row: FeatheredSpan, column: FeatheredSpan) -> torch.Tensor:
        return torch.full((3, 4 * (row.stop - row.start), 4 * (column.stop - column.start)), 7.0)

    def finish(part_KHW: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(part_KHW.shape))
        return part_KHW.mean(0, keepdim=True).round().to(torch.uint8)

    bands = list(assemble(rows, columns, ask, finish))
    tops = [row.low for row in rows] + [120]
    assert [tuple(band.shape) for band in bands] == [(1, 4 * (b - a), 360) for a, b in itertools.pairwise(tops)]
    assert all(band.dtype == torch.uint8 and (band == 7).all() for band in bands)
    lefts = [column.low for column in columns] + [90]
    widths = [4 * (b - a) for a, b in itertools.pairwise(lefts)]
    assert sizes == [(3, 4 * (b - a), width) for a, b in itertools.pairwise(tops) for width in widths]
