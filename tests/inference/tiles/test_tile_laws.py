"""Tiles put together: the weighted sum of all answers, in bands of whatever form `finish` gives them."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.inference.tiles import assemble, whole
from imaging.tiling import FeatheredSpan, plan_feathered_spans


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
