"""What a budget buys: nothing that fits and helps is left, at a price, by shares of the error, within a loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.budget.model import choose
from fusion.budget.plan import plan_loss, plan_share
from tests.inference.budget.parts import budget_model_for, menu_of, prediction_of


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
