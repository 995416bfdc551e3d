"""The budget: never more than allowed, the best for its cost, more is never worse."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate, uniform_filter

from fusion.budget.fit import expected_error, make_menu
from fusion.budget.model import MEASURES, BudgetModel, choose, measure_cells
from fusion.budget.plan import GainPrediction, plan_share
from fusion.network.base.blend import BaseRecord
from imaging.metrics import luma
from imaging.refusal import Refusal
from imaging.settings import parse_settings
from tests.experts.parts import image
from tests.fusion.parts import random_record
from tests.inference.budget.parts import budget_model_for, menu_of


@settings(max_examples=200, deadline=None)
@given(tiles=st.integers(1, 12), choices=st.integers(2, 8), seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_plans_keep_the_budget_and_a_larger_one_gains_more(tiles: int, choices: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    costs, pixels_N = menu_of(rng, choices), rng.uniform(1, 5, tiles)
    gains_NM = rng.normal(1, 1, (tiles, choices))
    gains_NM[:, 0] = 0
    least, full = costs[0] * pixels_N.sum(), costs[-1] * pixels_N.sum()
    allowed = least + share * (full - least)
    chosen, curve = choose(gains_NM, pixels_N, costs, allowed)
    spent = float((pixels_N * np.array(costs)[chosen]).sum())
    gained = float((pixels_N * gains_NM[np.arange(tiles), chosen]).sum())
    assert spent <= allowed * (1 + 1e-6)
    assert curve[-1] == (pytest.approx(spent), pytest.approx(gained))
    assert all(later[1] >= sooner[1] and later[0] >= sooner[0] for sooner, later in itertools.pairwise(curve))
    _, longer = choose(gains_NM, pixels_N, costs, least + (share + 0.05) * (full - least))
    last = float((gains_NM.max(1) * pixels_N).max())
    assert longer[-1][1] >= curve[-1][1] - last, "but for the last remainder, which may fit better into less"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_each_point_of_the_curve_is_the_best_plan_of_its_cost(seed: int) -> None:
    """Against all plans by brute force: at each point of the hull no plan of that cost gains more."""
    rng = np.random.default_rng(seed)
    gains_NM, pixels_N, costs = rng.uniform(0, 2, (4, 4)), rng.uniform(1, 3, 4), [1.0, 1.5, 2.0, 4.0]
    gains_NM[:, 0] = 0
    _, curve = choose(gains_NM, pixels_N, costs, float("inf"))
    plans = []
    for plan in itertools.product(range(4), repeat=4):
        cost = sum(pixels_N[n] * costs[k] for n, k in enumerate(plan))
        plans.append((cost, sum(pixels_N[n] * gains_NM[n, k] for n, k in enumerate(plan))))
    for cost, gain in curve:
        assert max(g for c, g in plans if c <= cost + 1e-9) == pytest.approx(gain)


def test_a_single_tile_gets_the_best_choice_that_fits() -> None:
    """Off the hull: the remainder pays for what lies between two of its points."""
    gains_NM, pixels_N, costs = np.array([[0.0, 0.1, 0.4, 1.0]]), np.ones(1), [1.0, 2.0, 3.0, 4.0]
    found = [int(choose(gains_NM, pixels_N, costs, allowed)[0][0]) for allowed in (0.5, 1, 2.2, 3, 3.9, 4)]
    assert found == [0, 0, 1, 2, 2, 3]


def test_expected_error_is_that_of_the_blend() -> None:
    """From the Gram matrix against errors drawn with those products."""
    record = random_record(("a", "b", "c"))
    gram = np.array(record.gram)
    errors = np.linalg.cholesky(gram) @ np.random.default_rng(0).normal(size=(9, 200_000))
    for names in (("a",), ("c", "a"), ("a", "b", "c")):
        (row,) = record.solve(names)
        blend = sum(
            w * errors[3 * "abc".index(n) : 3 * "abc".index(n) + 3].sum(0) for n, w in zip(names, row, strict=True)
        )
        assert expected_error(record, names) == pytest.approx(float((blend**2).mean()), rel=0.02)


def test_the_menu_rises_from_the_cheapest_to_all() -> None:
    gram = np.diag(np.repeat([3.0, 1.0, 1.0], 3)).tolist()
    record = BaseRecord(experts=("weak", "dear", "fair"), gram=tuple(map(tuple, gram)), items=1)
    menu = make_menu(record, {"weak": 1, "dear": 9, "fair": 2})
    assert menu[0] == ("weak",) and set(menu[-1]) == {"weak", "dear", "fair"} and len(menu) == 7
    many = tuple("abcdefg")
    record = BaseRecord(experts=many, gram=tuple(map(tuple, np.eye(21).tolist())), items=1)
    menu = make_menu(record, dict.fromkeys(many, 1.0))
    assert [len(choice) for choice in menu] == [1, 2, 3, 4, 5, 6, 7], "of equals, one of each size"


def plain_measures(y: np.ndarray) -> np.ndarray:
    """Of one cell that is a whole image, with SciPy's filters."""
    blurred = [y, *(uniform_filter(y, 2 * radius + 1, mode="nearest") for radius in (1, 2, 4))]
    fine, middle, coarse = ((a - b) ** 2 for a, b in itertools.pairwise(blurred))
    power = (np.diff(y, axis=1, append=y[:, -1:]) ** 2 + np.diff(y, axis=0, append=y[-1:]) ** 2).mean()
    bend = correlate(y, np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]]), mode="nearest")
    tiny = 1e-7
    fine_mean = fine.mean() + tiny
    return np.array(
        [
            np.log(fine_mean / tiny) / 10,
            np.log((middle.mean() + tiny) / (coarse.mean() + tiny)) / 5,
            np.log(((blurred[0] - blurred[1]) ** 4).mean() / fine_mean**2 + 1e-3) / 5,
            np.log(((bend**2).mean() + tiny) / (power + tiny)) / 5,
        ]
    )


def test_measures_against_scipy() -> None:
    lr_BCHW = image(16, 16)
    measures, energy, pixels = measure_cells(lr_BCHW)
    y = luma(lr_BCHW)[0, 0].double().numpy()
    names = ("fine", "middle/coarse", "peaks", "bends")
    found = [measures[0, 0, MEASURES.index(name)] for name in names]
    np.testing.assert_allclose(found, plain_measures(y), rtol=1e-4)
    assert pixels.tolist() == [[256]]
    assert energy[0, 0] == pytest.approx(((y - uniform_filter(y, 3, mode="nearest")) ** 2).mean(), rel=1e-3)


def test_cells_cover_the_image_once_and_separate_flat_from_busy() -> None:
    lr_BCHW = torch.cat([torch.full((1, 3, 40, 32), 0.5), image(40, 24)], dim=-1)
    measures, energy, pixels = measure_cells(lr_BCHW)
    assert measures.shape == (3, 4, len(MEASURES)) and np.isfinite(measures).all()
    assert pixels.sum() == 40 * 56 and pixels[-1, -1] == 8 * 8
    assert energy[:, 2:].min() > 1000 * energy[:, 0].max()


@pytest.mark.parametrize(
    "change", [{"menu": [("dear",), ("cheap", "dear")]}, {"seconds": {"cheap": 1.0}}, {"gains": [(1.0,)]}]
)
def test_contradictory_budget_models_are_refused(change: dict[str, Any]) -> None:
    fields = budget_model_for("cheap", "dear").model_dump(mode="json") | change
    if "menu" in change:
        fields["seconds"] = {"cheap": 1.0, "dear": -1.0}
    with pytest.raises(Refusal):
        parse_settings(BudgetModel, fields, where="test")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 1))
def test_one_plan_for_all_keeps_the_budget_and_serves_no_worse_than_one_each(seed: int, share: float) -> None:
    """By its own criterion: the sum of the images' predicted shares of error removed."""
    rng = np.random.default_rng(seed)
    budget_model = budget_model_for("cheap", "dear")
    predictions = {
        str(index): GainPrediction(
            np.concatenate([np.zeros((count, 1)), rng.uniform(0, 1, (count, len(budget_model.menu) - 1))], 1),
            rng.uniform(0.5, 2, count),
            rng.uniform(10, 20, count),
        )
        for index, count in enumerate(rng.integers(1, 30, 3))
    }
    pooled = plan_share(budget_model, predictions, share)
    costs_M = np.array(budget_model.costs)
    spent = sum(float(costs_M[pooled[name]] @ one.pixels_N) for name, one in predictions.items())
    full = costs_M[-1] * sum(float(one.pixels_N.sum()) for one in predictions.values())
    least = costs_M[0] / costs_M[-1]
    assert spent <= max(share, least) * full * (1 + 1e-9)
    apart = {name: plan_share(budget_model, {name: one}, share)[name] for name, one in predictions.items()}
    gains = [sum(one.gain(plan[name]) / one.error for name, one in predictions.items()) for plan in (pooled, apart)]
    dearest_step = max(float((one.gains_NM.max(1) * one.pixels_N).max()) / one.error for one in predictions.values())
    assert gains[0] >= gains[1] - dearest_step, "but for the last tile, which may not fit"
