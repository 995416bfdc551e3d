"""What a budget measures, predicts and buys, each against NumPy and SciPy."""

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
from fusion.budget.model import MEASURES, BudgetModel, choose, measure_cells
from fusion.budget.plan import GainPrediction, as_plan, plan_loss, plan_share, predict_gains, predict_tile
from fusion.inference.source import read_source
from fusion.inference.upscale import Grid
from imaging.metrics import luma
from imaging.refusal import Refusal
from imaging.settings import parse_settings
from tests.experts.parts import image
from tests.inference.budget.parts import budget_model_for, menu_of
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


@settings(max_examples=100, deadline=None)
@given(tiles=st.integers(1, 6), choices=st.integers(2, 6), seed=st.integers(0, 10_000), share=st.floats(-0.2, 1.2))
def test_nothing_that_fits_and_helps_is_left_unbought(tiles: int, choices: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    costs_M, pixels_N = np.array(menu_of(rng, choices)), rng.uniform(1, 5, tiles)
    gains_NM = rng.normal(0.5, 1, (tiles, choices))
    gains_NM[:, 0] = 0
    least, full = costs_M[0] * pixels_N.sum(), costs_M[-1] * pixels_N.sum()
    allowed = least + share * (full - least)
    chosen_N, points = choose(gains_NM, pixels_N, list(costs_M), allowed)
    if allowed < least * (1 - 1e-6):
        assert (chosen_N == 0).all(), "every tile has the first choice, whatever is allowed"
        assert points == [(pytest.approx(least), 0.0)]
        return
    spent = float(costs_M[chosen_N] @ pixels_N)
    for tile, choice in np.ndindex(gains_NM.shape):
        more = (costs_M[choice] - costs_M[chosen_N[tile]]) * pixels_N[tile]
        better = gains_NM[tile, choice] > gains_NM[tile, chosen_N[tile]] + 1e-12
        assert not better or more < 0 or spent + more > allowed * (1 + 1e-10)


@settings(max_examples=100, deadline=None)
@given(tiles=st.integers(1, 5), choices=st.integers(2, 6), seed=st.integers(0, 10_000), price=st.floats(0.02, 3))
def test_at_any_price_the_plan_is_each_tiles_best(tiles: int, choices: int, seed: int, price: float) -> None:
    """Lagrange: what maximises gain - price * seconds tile by tile is the plan that its own seconds buy."""
    rng = np.random.default_rng(seed)
    costs_M, pixels_N = np.cumsum(rng.uniform(0.2, 2, choices)), rng.uniform(1, 5, tiles)
    gains_NM = rng.normal(1, 1, (tiles, choices))
    gains_NM[:, 0] = 0
    best_N = (gains_NM - price * costs_M).argmax(1)
    seconds = float(costs_M[best_N] @ pixels_N)
    gain = float(gains_NM[np.arange(tiles), best_N] @ pixels_N)
    chosen_N, points = choose(gains_NM, pixels_N, list(costs_M), seconds)
    assert points[-1] == (pytest.approx(seconds), pytest.approx(gain))
    assert chosen_N.tolist() == best_N.tolist()


def test_what_is_dearer_and_no_better_is_never_bought() -> None:
    gains_NM = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 1.0]])
    chosen_N, points = choose(gains_NM, np.ones(2), [1.0, 2.0, 3.0], math.inf)
    assert chosen_N.tolist() == [0, 1]
    assert points == [(2.0, 0.0), (3.0, 1.0)]


def test_what_costs_nothing_is_taken_at_once() -> None:
    gains_NM = np.array([[0.0, 0.5, 0.4], [0.0, -0.5, 3.0]])
    chosen_N, _ = choose(gains_NM, np.ones(2), [1.0, 1.0, 5.0], 2.0)
    assert chosen_N.tolist() == [1, 0]


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


def prediction_of(rng: np.random.Generator, tiles: int, choices: int) -> GainPrediction:
    gains_NM = np.concatenate([np.zeros((tiles, 1)), rng.uniform(0, 1, (tiles, choices - 1))], 1)
    return GainPrediction(gains_NM, rng.uniform(0.5, 2, tiles), rng.uniform(10, 20, tiles))


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


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1.5))
def test_a_shared_plan_is_one_plan_of_all_tiles_by_share_of_error(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    budget_model = budget_model_for("a", "b", "c")
    predictions = {name: prediction_of(rng, int(rng.integers(1, 6)), 3) for name in "xyz"}
    plans = plan_share(budget_model, predictions, share)
    assert list(plans) == ["x", "y", "z"]
    assert [len(plan) for plan in plans.values()] == [len(one.pixels_N) for one in predictions.values()]
    together = np.concatenate(list(plans.values()))
    if share >= 1:
        assert (together == 2).all()
        return
    gains_NM = np.concatenate([one.gains_NM / (one.error_N @ one.pixels_N) for one in predictions.values()])
    pixels_N = np.concatenate([one.pixels_N for one in predictions.values()])
    expected, _ = choose(gains_NM, pixels_N, budget_model.costs, share * 7 * pixels_N.sum())
    assert together.tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), max_loss=st.floats(0, 2))
def test_a_bound_on_loss_buys_no_more_than_it_needs(seed: int, max_loss: float) -> None:
    rng = np.random.default_rng(seed)
    budget_model, prediction = budget_model_for("a", "b", "c"), prediction_of(rng, 4, 3)
    costs_M, full = np.array(budget_model.costs), 7 * prediction.pixels_N.sum()
    chosen_N = plan_loss(budget_model, prediction, max_loss)
    assert prediction.loss_db(prediction.gain(chosen_N)) <= max_loss + 1e-9
    _, points = choose(prediction.gains_NM, prediction.pixels_N, budget_model.costs, full)
    enough = [seconds for seconds, gain in points if prediction.loss_db(gain) <= max_loss]
    assert float(costs_M[chosen_N] @ prediction.pixels_N) == pytest.approx(min(enough, default=points[-1][0]))


def test_a_loss_that_no_plan_keeps_buys_the_best_there_is() -> None:
    budget_model, prediction = budget_model_for("a", "b", "c"), prediction_of(np.random.default_rng(0), 4, 3)
    assert plan_loss(budget_model, prediction, -50.0).tolist() == prediction.gains_NM.argmax(1).tolist()


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
