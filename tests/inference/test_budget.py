"""The budget: never more than allowed, the best for its cost, more is never worse, tiles get what they need."""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import correlate, uniform_filter

from cache_tools.__main__ import main as import_main
from cache_tools.read.reader import CacheReader
from fusion.budget import fit as budget_fit
from fusion.budget.cells import errors_of_blends, errors_of_fusion, gather
from fusion.budget.fit import expected_error, learned, make_menu
from fusion.budget.model import MEASURES, BudgetModel, choose, measure_cells
from fusion.budget.plan import GainPrediction, plan_share
from fusion.budget.run import BudgetRunner
from fusion.inference.command import Request, carry_out
from fusion.inference.ensemble import Answer
from fusion.inference.options import Options
from fusion.inference.parser import add_arguments, request_of
from fusion.network import ExpertSlot, FusionSettings, FusionSR
from fusion.network.base.blend import BaseBlend, BaseRecord
from imaging.command import DONE, FAILURES_LISTED, run
from imaging.files import read_rgb
from imaging.metrics import luma
from imaging.refusal import Refusal
from imaging.settings import parse_settings
from tests.experts.parts import image
from tests.fusion.parts import random_record
from tests.inference.parts import enlarge, ensemble_of, photo, pixels

if TYPE_CHECKING:
    from fusion.inference.ensemble import Place, RunExpert


def menu_of(rng: np.random.Generator, choices: int) -> list[float]:
    """Rising costs, now and then two alike."""
    return list(np.cumsum(rng.choice([0.0, 0.3, 1.0, 2.5], choices, p=[0.1, 0.3, 0.3, 0.3])) + 0.5)


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


def budget_model_for(*names: str, **changes: Any) -> BudgetModel:
    """Every further expert is predicted to gain one hundredth of the detail."""
    fields = {
        "menu": [names[: count + 1] for count in range(len(names))],
        "seconds": {name: float(2**index) for index, name in enumerate(names)},
        "gains": [(0.01 * count, *[0.0] * (len(MEASURES) - 1)) for count in range(1, len(names))],
        "error": (0.5, *[0.0] * (len(MEASURES) - 1)),
        "cells": 1,
        "source": "test",
    }
    return BudgetModel.model_validate(fields | changes)


@pytest.mark.parametrize(
    "change", [{"menu": [("dear",), ("cheap", "dear")]}, {"seconds": {"cheap": 1.0}}, {"gains": [(1.0,)]}]
)
def test_contradictory_budget_models_are_refused(change: dict[str, Any]) -> None:
    fields = budget_model_for("cheap", "dear").model_dump(mode="json") | change
    if "menu" in change:
        fields["seconds"] = {"cheap": 1.0, "dear": -1.0}
    with pytest.raises(Refusal):
        parse_settings(BudgetModel, fields, where="test")


@pytest.fixture
def half_busy(tmp_path: Path) -> Path:
    """Left flat, right noisy."""
    levels = np.full((60, 200, 3), 128, np.uint8)
    levels[:, 110:] = photo(60, 90) // 2 + np.random.default_rng(0).integers(0, 100, (60, 90, 3))
    Image.fromarray(levels).save(tmp_path / "in.png")
    return tmp_path


def run_budget(folder: Path, budget_model: BudgetModel, *, report: bool = False, **options: Any) -> dict[str, Any]:
    """One run; the experts are told apart by how much they brighten."""
    ensemble = ensemble_of(cheap=enlarge, dear=lambda lr_BCHW: enlarge(lr_BCHW) + 0.1)
    ensemble.identity["fusion"]["kind"] = "fusion"
    (folder / "budget.json").write_text(budget_model.model_dump_json())
    chosen = Options(tile=40, **options)
    request = Request(
        folder / "in.png", folder / "out", chosen, report=report, budget_model=folder / "budget.json", as_json=True
    )
    assert carry_out(request, ensemble) == DONE
    return json.loads((folder / "out" / "in.png.json").read_text())


def test_the_costly_expert_runs_where_the_detail_is(half_busy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run_budget(half_busy, budget_model_for("cheap", "dear"), budget=0.6, report=True)
    plan = json.loads(capsys.readouterr().out)["plans"]["in"]
    grid = np.array(plan["experts_per_tile"])
    assert grid[:, 0].max() == 1
    assert grid[:, -1].min() == 2
    assert plan["spent"] <= 0.6
    change = pixels(half_busy / "out" / "in.png").astype(int) - pixels(half_busy / "in.png").repeat(4, 0).repeat(4, 1)
    assert (change[:, :100] == 0).all()
    assert change[:, -100:].mean() == pytest.approx(0.05 * 255, abs=2)  # the mean of both experts
    assert record["claim"]["options"]["budget"] == 0.6
    page = (half_busy / "out" / "report.html").read_text()
    assert "Budget plan" in page
    assert "gate/dear" in page


def test_each_tile_runs_the_experts_of_its_own_row_and_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rows and two columns of tiles, detail in one tile alone: only there may the costly expert run."""
    levels = np.full((88, 64, 3), 128, np.uint8)
    levels[38:50, :26] = np.random.default_rng(0).integers(60, 200, (12, 26, 3))
    Image.fromarray(levels).save(tmp_path / "in.png")
    calls: dict[str, set[tuple[int, int]]] = {"cheap": set(), "dear": set()}

    def expert(name: str) -> RunExpert:
        def run_expert(lr_BCHW: torch.Tensor, place: Place, _turn: int) -> Answer:
            calls[name].add((place.top, place.left))
            return Answer(enlarge(lr_BCHW), None)

        return run_expert

    ensemble = replace(ensemble_of(cheap=enlarge, dear=enlarge), experts={name: expert(name) for name in calls})
    ensemble.identity["fusion"]["kind"] = "fusion"
    gains = [[0.1 * (name == "fine") for name in MEASURES]]
    (tmp_path / "budget.json").write_text(budget_model_for("cheap", "dear", gains=gains).model_dump_json())
    options = Options(tile=40, budget=0.5)
    request = Request(
        tmp_path / "in.png", tmp_path / "out", options, budget_model=tmp_path / "budget.json", as_json=True
    )
    assert carry_out(request, ensemble) == DONE
    plan = json.loads(capsys.readouterr().out)["plans"]["in"]
    assert plan["experts_per_tile"] == [[1, 1], [2, 1], [1, 1]]
    assert calls["cheap"] == {(top, left) for top in (0, 24, 48) for left in (0, 24)}
    assert calls["dear"] == {(24, 0)}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A flat picture, a busy one and one that nobody can read."""
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((48, 48, 3), 128, np.uint8)).save(tmp_path / "in" / "flat.png")
    Image.fromarray(np.random.default_rng(0).integers(60, 200, (48, 48, 3), np.uint8)).save(tmp_path / "in/busy.png")
    (tmp_path / "in" / "torn.png").write_bytes((tmp_path / "in" / "busy.png").read_bytes()[:500])
    return tmp_path


def run_mixed(folder: Path, **options: Any) -> int:
    ensemble = ensemble_of(cheap=enlarge, dear=lambda lr_BCHW: enlarge(lr_BCHW) + 0.1)
    ensemble.identity["fusion"]["kind"] = "fusion"
    budget_model = folder / "budget.json"
    gains = [[0.1 * (name == "fine") for name in MEASURES]]  # a larger share of the error where there is detail
    budget_model.write_text(budget_model_for("cheap", "dear", gains=gains).model_dump_json())
    request = Request(folder / "in", folder / "out", Options(**options), budget_model=budget_model, as_json=True)
    return carry_out(request, ensemble)


def test_a_budget_is_spent_over_all_images(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would pay for half of an expert everywhere pays for both where the detail is."""
    assert run_mixed(mixed, budget=0.7) == FAILURES_LISTED
    found = json.loads(capsys.readouterr().out)
    assert found["plans"]["flat"]["experts_per_tile"] == [[1]]
    assert found["plans"]["busy"]["experts_per_tile"] == [[2]]
    assert sum(plan["spent"] for plan in found["plans"].values()) / 2 <= 0.7
    assert list(found["failed"]) == [str(mixed / "in" / "torn.png")]


def test_a_resumed_run_plans_the_same(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the busy picture done, the flat one is not given what is left over."""
    run_mixed(mixed, budget=0.7)
    first = json.loads(capsys.readouterr().out)["plans"]
    (mixed / "out" / "flat.png").unlink()
    run_mixed(mixed, budget=0.7, skip_existing=True)
    again = json.loads(capsys.readouterr().out)
    assert again["skipped"] == [str(mixed / "out" / "busy.png")]
    assert again["plans"] == {"flat": first["flat"]}


def test_a_loss_is_kept_by_each_image(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_mixed(mixed, max_loss=0.01)
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert all(plan["predicted_loss_db"] <= 0.01 for plan in plans.values())


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


def test_a_larger_budget_never_spends_less(half_busy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = []
    for budget in (0.34, 0.5, 0.75, 1.0):
        run_budget(half_busy, budget_model_for("cheap", "dear"), budget=budget)
        plans.append(json.loads(capsys.readouterr().out)["plans"]["in"])
    assert [plan["spent"] for plan in plans] == sorted(plan["spent"] for plan in plans)
    losses = [plan["predicted_loss_db"] for plan in plans]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-9)


def test_a_maximum_loss_is_kept(half_busy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_budget(half_busy, budget_model_for("cheap", "dear"), max_loss=0.03)
    plan = json.loads(capsys.readouterr().out)["plans"]["in"]
    assert plan["predicted_loss_db"] <= 0.03
    assert plan["spent"] < 1


@pytest.mark.parametrize(
    ("budget_model", "message"),
    [
        (budget_model_for("cheap", "other"), "is for cheap, other"),
        (budget_model_for("cheap", "dear", weights_sha256={"dear": "0" * 64}), "not those the budget was fitted for"),
    ],
)
def test_a_budget_model_for_other_experts_is_refused(half_busy: Path, budget_model: BudgetModel, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        run_budget(half_busy, budget_model, budget=0.5)


def test_without_a_model_there_is_no_budget(half_busy: Path) -> None:
    (half_busy / "budget.json").write_text(budget_model_for("cheap", "dear").model_dump_json())
    ensemble = ensemble_of(cheap=enlarge, dear=enlarge)
    with pytest.raises(Refusal, match="no fusion model"):
        BudgetRunner.load(half_busy / "budget.json", ensemble, Options(budget=0.5))


@pytest.mark.parametrize("option", ["--budget-model", "--budget-head"])
def test_both_spellings_of_the_option_name_the_budget_model(option: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = parser.parse_args(["-i", "in", "-o", "out", "--budget", "0.5", option, "budget.json"])
    assert request_of(words).budget_model == Path("budget.json")


def make_budget_cache(folder: Path) -> Path:
    """Two folders of images, one sharp and costly, one blurred and cheap; noise above, flat below."""
    rng = np.random.default_rng(0)
    for number in range(6):
        hr = np.full((192, 128, 3), 120, np.uint8)
        hr[:96] = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        image_of = Image.fromarray(hr)
        small = image_of.resize((32, 48), Image.Resampling.BICUBIC)
        blurred = small.resize((128, 192), Image.Resampling.BICUBIC)
        sharp = Image.blend(image_of, blurred, 0.3)
        for name, picture in (("hr", image_of), ("lr", small), ("cheap", blurred), ("dear", sharp)):
            (folder / name).mkdir(exist_ok=True)
            picture.save(folder / name / f"{number}.png")
    folders = [str(folder / name) for name in ("cheap", "dear")]
    sources = ["--hr", str(folder / "hr"), "--lr", str(folder / "lr"), "--out", str(folder / "cache")]
    assert run(import_main, ["import-images", *folders, *sources]) == DONE
    return folder / "cache"


@pytest.mark.parametrize(("groups", "pull"), [(((0, 1, 2),), 0.0), (((0,), (1, 2)), 0.0), (((0, 1, 2),), 0.7)])
def test_the_errors_learned_from_are_those_of_the_blends(tmp_path: Path, groups: Any, pull: float) -> None:
    """One table of products per cell against every selection's blend made and compared with the truth."""
    cache = make_budget_cache(tmp_path)
    reader = CacheReader(cache, features=False)
    record = random_record(reader.experts).model_copy(update={"groups": groups, "back_projection": pull})
    menu = make_menu(record, {"cheap": 1.0, "dear": 3.0})
    cells, blend, row = gather(reader, errors_of_blends(record, menu)), BaseBlend(record), 0
    for item in reader:
        for index, names in enumerate(menu):
            images = torch.stack([item.sr_BECHW[:, item.experts.index(name)] for name in names], 1)
            assert item.hr_BCHW is not None
            error_HW = (blend(item.lr_BCHW, images, names) - item.hr_BCHW).square().mean((0, 1)).numpy()
            expected = error_HW.reshape(3, 64, 2, 64).mean((1, 3)).ravel()
            np.testing.assert_allclose(cells.errors_XM[row : row + 6, index], expected, rtol=1e-3, atol=1e-7)
        row += 6


def test_with_a_fusion_the_errors_are_those_of_its_own_images(tmp_path: Path) -> None:
    """Cell by cell against the network called on each selection; a model that gives its base counts as a blend."""
    reader = CacheReader(make_budget_cache(tmp_path), features=False)
    slots = tuple(ExpertSlot(name=name, channels=0) for name in reader.experts)
    model = FusionSR(FusionSettings(experts=slots)).eval()
    model.set_base(random_record(reader.experts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    menu = make_menu(model.base.record, {"cheap": 1.0, "dear": 3.0})
    cells, row = gather(reader, errors_of_fusion(model, menu)), 0
    for item in reader:
        for index, names in enumerate(menu):
            images = torch.stack([item.sr_BECHW[:, item.experts.index(name)] for name in names], 1)
            with torch.no_grad():
                output = model(item.lr_BCHW, images, {}, names)
            assert item.hr_BCHW is not None
            assert not torch.equal(output.image_BCHW, output.base_BCHW), "it must have something of its own"
            error_HW = (output.image_BCHW - item.hr_BCHW).square().mean((0, 1)).numpy()
            expected = error_HW.reshape(3, 64, 2, 64).mean((1, 3)).ravel()
            np.testing.assert_allclose(cells.errors_XM[row : row + 6, index], expected, rtol=1e-3, atol=1e-7)
        row += 6
    assert learned(model) is model
    model.record = model.record.model_copy(update={"verdict": "base"})
    assert learned(model) is None


def test_fit_from_a_real_cache(tmp_path: Path) -> None:
    """The sharp expert, three times as costly, runs where it matters."""
    cache = make_budget_cache(tmp_path)
    words = [cache, "--seconds", "cheap=1,dear=3", "--out", tmp_path / "budget.json", "--tile", 16]
    words += ["--check", cache, "--record", tmp_path / "curve.md"]
    assert run(budget_fit.main, [str(word) for word in words]) == DONE
    budget_model = BudgetModel.read(tmp_path / "budget.json")
    assert budget_model.menu == (("cheap",), ("dear",), ("cheap", "dear"))
    lr = read_rgb(tmp_path / "lr" / "0.png")
    measures_PQD, energy_PQ, _ = measure_cells(lr)
    gains_XM, _ = budget_model.predict(measures_PQD.reshape(-1, len(MEASURES)), energy_PQ.ravel())
    busy, flat = gains_XM.reshape(3, 2, 3)[0], gains_XM.reshape(3, 2, 3)[2]
    assert busy[:, 1].min() > 100 * abs(flat[:, 1]).max()
    rows = [
        line.split("|")
        for line in (tmp_path / "curve.md").read_text().splitlines()
        if line.startswith("| ") and "%" in line
    ]
    spent, scores = ([float(row[column].strip(" %")) for row in rows] for column in (2, 3))
    assert spent == sorted(spent)
    assert scores == sorted(scores)
    # Half of the area is noise, and a sixth next to it: both there (their blend is the truth), the cheap one elsewhere.
    enough = next(index for index, share in enumerate(spent) if share >= 100 * (2 / 3 + 1 / 3 / 4) - 1)
    assert enough < len(spent) - 1
    assert scores[enough] == pytest.approx(scores[-1], abs=0.02)
    assert scores[enough] > scores[0] + 10
