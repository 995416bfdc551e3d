"""What a budget measures and predicts, each against NumPy or SciPy, and what its plan says."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import correlate, uniform_filter

from fusion.budget.cells import cell_sums
from fusion.budget.model import MEASURES, BudgetModel, measure_cells
from fusion.budget.plan import as_plan, predict_gains, predict_tile
from fusion.inference.source import read_source
from fusion.inference.upscale import Grid
from imaging.metrics import luma
from imaging.refusal import Refusal
from imaging.settings import parse_settings
from tests.experts.parts import image
from tests.inference.budget.parts import budget_model_for, prediction_of
from tests.inference.parts import photo

if TYPE_CHECKING:
    from pathlib import Path


def measures_by_scipy(lr_BCHW: torch.Tensor, cell: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ten measures, cell by cell, of maps that SciPy filtered."""
    y = luma(lr_BCHW)[0, 0].double().numpy()
    blurred = [y, *(uniform_filter(y, 2 * radius + 1, mode="nearest") for radius in (1, 2, 4))]
    bands = [a - b for a, b in itertools.pairwise(blurred)]
    dx, dy = np.diff(y, axis=1, append=y[:, -1:]), np.diff(y, axis=0, append=y[-1:])
    bend = correlate(y, np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]]), mode="nearest")
    height, width = y.shape
    shape = -(-height // cell), -(-width // cell)
    measures, energy, pixels = np.empty((*shape, len(MEASURES))), np.empty(shape), np.empty(shape)
    tiny = 1e-7
    for p, q in np.ndindex(shape):
        here = slice(cell * p, cell * (p + 1)), slice(cell * q, cell * (q + 1))
        fine, middle, coarse = ((band[here] ** 2).mean() + tiny for band in bands)
        xx, yy, xy = (product[here].mean() for product in (dx * dx, dy * dy, dx * dy))
        power = xx + yy + tiny
        found = {
            "one": 1,
            "fine": np.log(fine / tiny) / 10,
            "middle": np.log(middle / tiny) / 10,
            "coarse": np.log(coarse / tiny) / 10,
            "fine/middle": np.log(fine / middle) / 5,
            "middle/coarse": np.log(middle / coarse) / 5,
            "coherence": np.sqrt((xx - yy) ** 2 + 4 * xy**2) / power,
            "texture": (abs(dx[here]) + abs(dy[here])).mean() ** 2 / power,
            "peaks": np.log((bands[0][here] ** 4).mean() / fine**2 + 1e-3) / 5,
            "bends": np.log(((bend[here] ** 2).mean() + tiny) / power) / 5,
        }
        measures[p, q], energy[p, q], pixels[p, q] = [found[name] for name in MEASURES], fine, y[here].size
    return measures, energy, pixels


@pytest.mark.parametrize(("size", "cell"), [((16, 16), 16), ((35, 50), 16), ((20, 9), 8), ((5, 40), 16)])
def test_every_measure_of_every_cell_against_scipy(size: tuple[int, int], cell: int) -> None:
    """Also of the cells that remain at the right and lower edges, and of a picture smaller than one."""
    lr_BCHW = image(*size)
    for found, expected in zip(measure_cells(lr_BCHW, cell), measures_by_scipy(lr_BCHW, cell), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    if cell == 16:
        assert all(
            np.array_equal(*pair) for pair in zip(measure_cells(lr_BCHW), measure_cells(lr_BCHW, 16), strict=True)
        )


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), cell=st.integers(1, 17))
def test_cell_sums_are_sums(height: int, width: int, cell: int) -> None:
    maps_KHW = np.random.default_rng(height * width).normal(size=(2, height, width))
    found = cell_sums(torch.from_numpy(maps_KHW), cell)
    edges = [np.arange(0, side, cell) for side in (height, width)]
    expected = np.add.reduceat(np.add.reduceat(maps_KHW, edges[0], 1), edges[1], 2)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_budget_model_predicts_what_its_weights_say() -> None:
    rng = np.random.default_rng(0)
    gains = rng.normal(size=(2, len(MEASURES)))
    budget_model = budget_model_for("a", "b", "c", gains=gains.tolist(), error=[0.0] * (len(MEASURES) - 1) + [1.0])
    measures_XD, energy_X = rng.normal(size=(50, len(MEASURES))), rng.uniform(0.1, 2, 50)
    gains_XM, error_X = budget_model.predict(measures_XD, energy_X)
    assert (gains_XM[:, 0] == 0).all()
    for x in range(50):
        np.testing.assert_allclose(gains_XM[x, 1:], [energy_X[x] * (row @ measures_XD[x]) for row in gains])
        assert error_X[x] == pytest.approx(energy_X[x] * max(measures_XD[x, -1], 0.02)), "never less than 2 % of it"
    assert budget_model.costs == [1, 3, 7]
    assert budget_model.experts == ("a", "b", "c")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seconds": {"a": 1.0}}, "seconds must name each expert"),
        ({"seconds": {"a": 1.0, "b": 0.0}}, "all above 0"),
        ({"menu": [["a"], ["b"]], "seconds": {"a": 1.0, "b": 2.0}}, "each expert|end with all"),
        ({"menu": [["b"], ["a"], ["a", "b"]], "gains": [[0.0] * 10] * 2}, "must rise in cost"),
        ({"gains": [[0.0] * 10] * 2}, "a row of 10 for each choice"),
        ({"gains": [[0.0] * 9]}, "a row of 10"),
        ({"error": [0.0] * 9}, "a row of 10"),
    ],
)
def test_what_is_wrong_with_a_budget_model_is_said(change: dict[str, Any], says: str) -> None:
    fields = budget_model_for("a", "b").model_dump(mode="json")
    assert parse_settings(BudgetModel, fields, where="test").cell == 16
    with pytest.raises(Refusal, match=says):
        parse_settings(BudgetModel, fields | change, where="test")


def test_experts_of_one_cost_make_a_menu() -> None:
    """Rising includes staying: rounding must not forbid what costs the same."""
    seconds = {"a": 0.1 + 0.2, "b": 0.3}
    budget_model = budget_model_for(
        "a", "b", menu=[["a"], ["b"], ["a", "b"]], seconds=seconds, gains=[[0.0] * len(MEASURES)] * 2
    )
    assert budget_model.menu[1] == ("b",)


def test_a_prediction_adds_up_its_tiles() -> None:
    rng = np.random.default_rng(0)
    prediction, chosen_N = prediction_of(rng, 5, 3), np.array([0, 2, 1, 1, 2])
    tiles = range(5)
    gain = sum(prediction.gains_NM[n, chosen_N[n]] * prediction.pixels_N[n] for n in tiles)
    assert prediction.gain(chosen_N) == pytest.approx(gain)
    error = sum(prediction.error_N[n] * prediction.pixels_N[n] for n in tiles)
    all_of_it = sum(prediction.gains_NM[n, 2] * prediction.pixels_N[n] for n in tiles)
    assert prediction.loss_db(gain) == pytest.approx(10 * math.log10((error + all_of_it - gain) / error))
    assert prediction.loss_db(all_of_it) == pytest.approx(0)
    assert prediction.loss_db(all_of_it + error) < -100, "a plan predicted to leave nothing is finite"
    assert np.isfinite(prediction.loss_db(1e9))


def test_a_tile_is_the_mean_of_its_cells_by_their_pixels() -> None:
    budget_model = budget_model_for("a", "b")
    measures, energy, pixels = measure_cells(image(20, 40))
    gains_M, error, count = predict_tile(budget_model, measures, energy, pixels)
    assert count == 800
    expected_gain = expected_error_of_all = 0.0
    for p, q in np.ndindex(energy.shape):
        (gains,), (left,) = budget_model.predict(measures[p, q][None], energy[p, q][None])
        expected_gain += gains[1] * pixels[p, q] / 800
        expected_error_of_all += left * pixels[p, q] / 800
    assert gains_M == pytest.approx([0, expected_gain])
    assert error == pytest.approx(expected_error_of_all)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(photo(60, 130)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def test_each_tile_is_looked_at_where_it_counts(picture: Path) -> None:
    budget_model, source = budget_model_for("a", "b", cell=8), read_source(picture)
    grid = Grid.of(60, 130, 40, 4, 1)
    assert len(grid.rows) > 1 and len(grid.columns) > 2
    prediction = predict_gains(budget_model, source, grid)
    levels = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)[None] / 255
    for number, (row, column) in enumerate(itertools.product(grid.rows, grid.columns)):
        part = levels[..., row.low : row.high, column.low : column.high]
        gains_M, error, count = predict_tile(budget_model, *measure_cells(part, 8))
        assert prediction.gains_NM[number] == pytest.approx(gains_M)
        assert (prediction.error_N[number], prediction.pixels_N[number]) == (pytest.approx(error), count)


def test_a_plan_says_what_it_costs_and_who_runs_where() -> None:
    budget_model, grid = budget_model_for("a", "b", "c"), Grid.of(60, 130, 40, 4, 1)
    tiles = len(grid)
    prediction = prediction_of(np.random.default_rng(1), tiles, 3)
    chosen_N = np.arange(tiles) % 3
    plan = as_plan(budget_model, prediction, grid, chosen_N)
    said_of_it = plan.document(budget_model)
    seconds = sum(budget_model.costs[chosen_N[n]] * prediction.pixels_N[n] for n in range(tiles))
    full = sum(7 * prediction.pixels_N[n] for n in range(tiles))
    assert said_of_it["seconds"] == pytest.approx(seconds)
    assert said_of_it["full_seconds"] == pytest.approx(full)
    assert said_of_it["spent"] == pytest.approx(seconds / full)
    assert said_of_it["predicted_loss_db"] == pytest.approx(prediction.loss_db(prediction.gain(chosen_N)))
    counts = (chosen_N + 1).reshape(len(grid.rows), len(grid.columns))
    assert said_of_it["experts_per_tile"] == counts.tolist()
    expected = {name: float((counts > index).mean()) for index, name in enumerate("abc")}
    assert said_of_it["share"] == pytest.approx(expected)
