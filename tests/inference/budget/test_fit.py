"""What a budget learns from a cache, and the curve of it, each computed a second time."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr

from cache_tools.read.reader import CacheReader
from cache_tools.write.extract import extract
from cache_tools.write.recipe import ExtractSettings
from fusion.budget import fit as budget_fit
from fusion.budget.cells import Cells, blends, selection_weights
from fusion.budget.curve import SHARES, as_text, curve, tile_text
from fusion.budget.fit import ENOUGH, expected_error, fit, make_menu
from fusion.budget.model import BudgetModel, measure_cells
from fusion.budget.plan import GainPrediction, plan_share, predict_tile
from fusion.network.base.blend import BaseBlend, BaseRecord
from imaging.command import DONE, REFUSED, run
from imaging.refusal import Refusal
from tests.cache.parts import experts, write_images
from tests.fusion.parts import random_record
from tests.inference.budget.parts import budget_model_for, make_budget_cache

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("count", [3, 5])
def test_up_to_five_experts_every_selection_is_on_the_menu(count: int) -> None:
    names = tuple("abcdefg"[:count])
    record, seconds = random_record(names), {name: 1.0 + index**2 for index, name in enumerate(names)}
    menu = make_menu(record, seconds)
    assert len(menu) == len(set(menu)) == 2**count - 1
    costs = [sum(seconds[name] for name in one) for one in menu]
    assert costs == sorted(costs)
    for (one, cost), (other, dearer) in itertools.pairwise(zip(menu, costs, strict=True)):
        assert cost < dearer or expected_error(record, one) <= expected_error(record, other)
    assert all(one == tuple(name for name in names if name in one) for one in menu), "in the order of the base"


def test_of_more_than_five_only_those_that_beat_all_cheaper_ones() -> None:
    names = tuple("abcdef")
    record, rng = random_record(names), np.random.default_rng(3)
    seconds = {name: float(rng.uniform(1, 9)) for name in names}
    menu = make_menu(record, seconds)
    everyone = [one for size in range(1, 7) for one in itertools.combinations(names, size)]
    cost = {one: sum(seconds[name] for name in one) for one in everyone}
    error = {one: expected_error(record, one) for one in everyone}
    worth = [
        one
        for one in everyone
        if one == names or all(error[one] < error[other] for other in everyone if cost[other] < cost[one])
    ]
    assert menu == tuple(sorted(worth, key=cost.__getitem__))
    assert menu[-1] == names


def test_experts_without_a_cost_are_not_on_the_menu() -> None:
    menu = make_menu(random_record(tuple("abc")), {"c": 1.0, "a": 2.0})
    assert menu == (("c",), ("a",), ("a", "c"))


def test_the_weights_learned_are_the_ridge_regressions() -> None:
    """Against least squares with the penalty as further rows, cells counting by energy and size."""
    rng = np.random.default_rng(0)
    cells = Cells(rng.normal(size=(40, 4)), rng.uniform(0.5, 2, 40), rng.normal(size=(40, 2)), rng.uniform(1, 9, 40))
    target_X = cells.errors_XM[:, 0]
    weight_X = cells.energy_X * cells.pixels_X / (cells.energy_X * cells.pixels_X).sum()
    rows = np.concatenate([np.sqrt(weight_X)[:, None] * cells.measures_XD, np.sqrt(0.01) * np.eye(4)])
    right = np.concatenate([np.sqrt(weight_X) * target_X / cells.energy_X, np.zeros(4)])
    expected = np.linalg.lstsq(rows, right, rcond=None)[0]
    np.testing.assert_allclose(budget_fit._ridge(cells, target_X), expected, rtol=1e-9)


def test_a_selections_weights_lie_at_its_experts_and_bands() -> None:
    record = random_record(tuple("abc")).model_copy(update={"groups": ((0,), (1, 2))})
    (low, fine) = record.solve(("c", "a"))
    expected = [low[1], fine[1], fine[1], 0, 0, 0, low[0], fine[0], fine[0]]
    assert selection_weights(record, ("c", "a")).tolist() == expected


@pytest.mark.parametrize(("groups", "pull"), [(((0, 1, 2),), 0.7), (((0, 1, 2),), 0.0), (((0,), (1, 2)), 0.7)])
def test_blends_are_those_of_the_base(tmp_path: Path, groups: Any, pull: float) -> None:
    """However much of the work the selections share."""
    reader = CacheReader(make_budget_cache(tmp_path), features=False)
    record = random_record(reader.experts).model_copy(update={"groups": groups, "back_projection": pull})
    item, blend = next(iter(reader)), BaseBlend(record)
    menu = [("dear",), ("cheap",), ("cheap", "dear")]
    for names, found in zip(menu, blends(blend, item, menu), strict=True):
        images = torch.stack([item.sr_BECHW[:, item.experts.index(name)] for name in names], 1)
        torch.testing.assert_close(found, blend(item.lr_BCHW, images, names), rtol=1e-5, atol=1e-5)
        assert not found.requires_grad


@pytest.mark.parametrize("text", ["a=1", "a=1,b", "a=1,b=x", "a=1,b=0", "a=1,b=-2", "", "a=1,a=2", "a=1=2,b=1"])
def test_costs_that_are_none_are_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path), "--seconds", text, "--out", str(tmp_path / "budget.json")]
    assert run(budget_fit.main, words) == REFUSED
    assert "--seconds" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_budget_cache(tmp_path_factory.mktemp("budget"))


def test_the_fit_says_what_it_was_made_of(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [cache, "--seconds", " dear = 3 , cheap=1", "--out", tmp_path / "budget.json", "--json", "--check", cache]
    assert run(budget_fit.main, [str(word) for word in words]) == DONE
    printed = json.loads(capsys.readouterr().out)
    budget_model = BudgetModel.read(tmp_path / "budget.json")
    assert budget_model.seconds == {"dear": 3.0, "cheap": 1.0}
    assert (budget_model.cells, budget_model.source, budget_model.gains_of, budget_model.measured_on) == (
        6 * 6,
        cache.name,
        "blend",
        "",
    )
    assert budget_model.weights_sha256 == CacheReader(cache).recipe.weights(("cheap", "dear"))
    assert printed["menu"] == [list(one) for one in budget_model.menu]
    assert list(printed["curves"]) == ["cache, one choice per image", "cache, tiles of 16 LR pixels"]
    again, record = fit(
        cache, budget_model.seconds, items=[entry.id for entry in CacheReader(cache).entries[:2]], measured_on="x"
    )
    assert (again.cells, again.measured_on, record.items) == (2 * 6, "x", 2)
    given = random_record(("cheap", "dear"))
    assert fit(cache, budget_model.seconds, base=given)[1] is given


def test_what_is_learned_is_the_mean_gain(cache: Path) -> None:
    """Weights on all cells: the predicted gains and errors are those that the cells had, as far as ridge lets them."""
    budget_model, record = fit(cache, {"cheap": 1.0, "dear": 3.0})
    reader = CacheReader(cache, experts=record.experts, features=False)
    cells = budget_fit.gather(reader, budget_fit.errors_of_blends(record, budget_model.menu))
    gains_XM, error_X = budget_model.predict(cells.measures_XD, cells.energy_X)
    real_XM = cells.errors_XM[:, :1] - cells.errors_XM
    for choice in range(1, len(budget_model.menu)):
        found, real = (values @ cells.pixels_X for values in (gains_XM[:, choice], real_XM[:, choice]))
        assert found == pytest.approx(real, rel=0.1)
    assert error_X @ cells.pixels_X >= cells.errors_XM[:, -1] @ cells.pixels_X * 0.9


def test_with_much_to_learn_from_every_nth_item_is_enough(cache: Path) -> None:
    reader = CacheReader(cache)
    ids, area = [entry.id for entry in reader.entries], 48 * 32
    assert budget_fit._thinned(reader, ENOUGH) == ids
    assert budget_fit._thinned(reader, 6 * area) == ids
    assert budget_fit._thinned(reader, 6 * area - 1) == ids[::2]
    assert budget_fit._thinned(reader, 2 * area) == ids[::3]


def y_psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of two (3, H, W) images in [0, 1], with scikit-image's luma."""
    planes = [
        rgb2ycbcr((image.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))[..., 0]
        for image in (one, other)
    ]
    return float(10 * np.log10(255**2 / ((planes[0] - planes[1])[4:-4, 4:-4] ** 2).mean()))


@pytest.mark.parametrize("tile", [0, 16, 20])
def test_the_curve_is_that_of_the_images_put_together(cache: Path, tile: int) -> None:
    """Plan, put the tiles' images together, measure: for every share what the curve says of it."""
    budget_model, record = fit(cache, {"cheap": 1.0, "dear": 3.0})
    reader, blend = CacheReader(cache, experts=record.experts, features=False), BaseBlend(record)
    points = curve(budget_model, lambda item: blends(blend, item, budget_model.menu), reader, [tile])[tile]
    assert [point["share"] for point in points] == list(SHARES)
    side = tile or 48
    corners = [(top, left) for top in range(0, 48, side) for left in range(0, 32, side)]
    predictions, choices, truths = {}, {}, {}
    for item in reader:
        found = [
            predict_tile(budget_model, *measure_cells(item.lr_BCHW[..., top : top + side, left : left + side]))
            for top, left in corners
        ]
        gains, errors, pixels = zip(*found, strict=True)
        name = item.items[0]
        predictions[name] = GainPrediction(np.stack(gains), np.array(errors), np.array(pixels))
        choices[name] = [one[0].numpy() for one in blends(blend, item, budget_model.menu)]
        assert item.hr_BCHW is not None
        truths[name] = item.hr_BCHW[0].numpy()
    for point in points:
        plan = plan_share(budget_model, predictions, point["share"])
        scores, seconds = [], 0.0
        for name, images in choices.items():
            made = np.empty_like(images[0])
            for chosen, (top, left), pixels in zip(plan[name], corners, predictions[name].pixels_N, strict=True):
                here = (..., slice(4 * top, 4 * (top + side)), slice(4 * left, 4 * (left + side)))
                made[here] = images[chosen][here]
                seconds += budget_model.costs[chosen] * pixels
            scores.append(y_psnr(made, truths[name]))
        assert point["psnr"] == pytest.approx(np.mean(scores), abs=2e-3)
        assert point["spent"] == pytest.approx(seconds / (4 * 48 * 32 * 6))


def test_the_record_of_a_curve_can_be_read() -> None:
    budget_model = budget_model_for("a", "b")
    rows = [{"share": 0.5, "spent": 0.456, "psnr": 30.1234}, {"share": 1.0, "spent": 1.0, "psnr": 30.2}]
    text = as_text(budget_model, {"set, whole": rows}, ["a cache", "--json"])
    lines = text.splitlines()
    assert lines[0] == "# Budgeted inference"
    assert "    python -m fusion fit-budget 'a cache' --json" in lines
    assert "Cost per LR pixel: a 1, b 2. A menu of 2 selections, 1 cells to learn from." in lines
    start = lines.index("## set, whole")
    assert lines[start + 1 : start + 6] == [
        "",
        "| budget | spent | Y-PSNR | against all experts |",
        "|---|---|---|---|",
        "| 50% | 45.6% | 30.123 | -0.077 |",
        "| 100% | 100.0% | 30.200 | +0.000 |",
    ]
    assert [tile_text(0), tile_text(16)] == ["one choice per image", "tiles of 16 LR pixels"]


def test_without_truth_there_is_nothing_to_learn(tmp_path: Path) -> None:
    lr = write_images(tmp_path / "lr", [(24, 24)], scale=1)
    extract(ExtractSettings(out=tmp_path / "c", lr=lr), experts(tmp_path / "w"))
    with pytest.raises(Refusal, match="has no HR images"):
        fit(tmp_path / "c", {"e0": 1.0, "e1": 2.0})


def test_an_unfitted_base_is_the_mean() -> None:
    """Of equal experts every selection is expected to leave 1/n of the error, whichever it is."""
    record = BaseRecord.mean_of(("a", "b", "c", "d"))
    for size in range(1, 5):
        for names in itertools.combinations(record.experts, size):
            assert expected_error(record, names) == pytest.approx(3 / size)


def test_for_some_of_its_experts_it_is_what_is_fitted_on_them(tmp_path: Path) -> None:
    settings = ExtractSettings(out=tmp_path / "cache", hr=write_images(tmp_path / "hr"))
    extract(settings, experts(tmp_path / "weights", (0, 1, 2)))
    seconds = {"e0": 2.0, "e1": 1.0, "e2": 4.0}
    whole, base = fit(tmp_path / "cache", seconds)
    assert whole.for_experts(seconds) == whole
    for names in itertools.combinations(seconds, 2):
        part = whole.for_experts(names)
        places = [3 * base.experts.index(name) + band for name in names for band in range(3)]
        gram = np.array(base.gram)[np.ix_(places, places)]
        of_them = base.model_copy(update={"experts": names, "gram": tuple(map(tuple, gram.tolist()))})
        alone, _ = fit(tmp_path / "cache", {name: seconds[name] for name in names}, base=of_them)
        assert part is not None
        assert (part.menu, part.seconds, part.weights_sha256) == (alone.menu, alone.seconds, alone.weights_sha256)
        np.testing.assert_allclose(part.gains, alone.gains, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(part.error, alone.error, rtol=1e-6, atol=1e-9)
    assert whole.for_experts(["e0"]) is None, "there is nothing to choose"
    assert whole.for_experts(["e0", "other"]) is None
    assert whole.model_copy(update={"menu": whole.menu[:1] + whole.menu[-1:]}).for_experts(["e0", "e1"]) is None
