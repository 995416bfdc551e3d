"""The budget: never more than allowed, best purchases first, plans that nest, tiles get what they need."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cache_tools.__main__ import main as import_main
from fusion.inference import budget_fit
from fusion.inference.budget import MEASURES, BudgetHead, choose_steps, measure_tile
from fusion.inference.budget_fit import buying_order, expected_error
from fusion.inference.budget_run import Buyer
from fusion.inference.command import Request, carry_out
from fusion.inference.options import Options
from fusion.network.base import BaseRecord
from imaging.command import DONE, run
from imaging.refusal import Refusal
from imaging.settings import load_settings
from tests.expert_parts import image
from tests.fusion_parts import random_record
from tests.infer_parts import enlarge, ensemble_of, photo, pixels


@settings(max_examples=200, deadline=None)
@given(tiles=st.integers(1, 12), steps=st.integers(1, 3), seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_plans_keep_the_budget_and_nest(tiles: int, steps: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    gains_NK, pixels_N = rng.normal(1, 1, (tiles, steps)), rng.uniform(1, 5, tiles)
    costs = list(rng.uniform(0.5, 3, steps))
    allowed = share * sum(costs) * pixels_N.sum()
    bought, curve = choose_steps(gains_NK, pixels_N, costs, allowed)
    spent = sum(pixels_N[n] * sum(costs[: bought[n]]) for n in range(tiles))
    assert spent <= allowed * (1 + 1e-6)
    assert curve[-1][0] == pytest.approx(spent)
    gained = sum(pixels_N[n] * gains_NK[n, : bought[n]].sum() for n in range(tiles))
    assert curve[-1][1] == pytest.approx(gained)
    assert all(later[1] > sooner[1] for sooner, later in itertools.pairwise(curve))  # monotone
    more, _ = choose_steps(gains_NK, pixels_N, costs, allowed * 1.5)
    assert (more >= bought).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_each_purchase_is_the_best_that_its_money_buys(seed: int) -> None:
    """Against all plans by brute force: at each point of the curve no plan of that cost gains more."""
    rng = np.random.default_rng(seed)
    gains_NK, pixels_N, costs = rng.uniform(0.1, 2, (4, 2)), rng.uniform(1, 3, 4), [1.0, 2.0]
    _, curve = choose_steps(gains_NK, pixels_N, costs, float("inf"))
    plans = []
    for plan in itertools.product(range(3), repeat=4):
        cost = sum(pixels_N[n] * sum(costs[:k]) for n, k in enumerate(plan))
        plans.append((cost, sum(pixels_N[n] * gains_NK[n, :k].sum() for n, k in enumerate(plan))))
    for cost, gain in curve:
        assert max(g for c, g in plans if c <= cost + 1e-9) == pytest.approx(gain)


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


def test_the_cheapest_comes_first_then_the_best_value() -> None:
    gram = np.diag(np.repeat([3.0, 1.0, 1.0], 3)).tolist()
    record = BaseRecord(experts=("weak", "dear", "fair"), gram=tuple(map(tuple, gram)), items=1)
    assert buying_order(record, {"weak": 1, "dear": 9, "fair": 2}) == ("weak", "fair", "dear")


def test_measures_tell_flat_from_busy() -> None:
    flat, busy = torch.full((1, 3, 16, 16), 0.5), image(16, 16)
    measured = [measure_tile(lr_BCHW, enlarge(lr_BCHW)) for lr_BCHW in (flat, busy)]
    assert all(len(measures) == len(MEASURES) and np.isfinite(measures).all() for measures, _ in measured)
    assert measured[1][1] > 1000 * measured[0][1]


def head_for(*names: str, **changes: Any) -> BudgetHead:
    """Every further expert is predicted to gain one hundredth of the detail."""
    row = (0.01, *[0.0] * (len(MEASURES) - 1))
    fields = {
        "order": names,
        "seconds": {name: float(2**index) for index, name in enumerate(names)},
        "gains": (row,) * (len(names) - 1),
        "error": (0.5, *[0.0] * (len(MEASURES) - 1)),
        "tile": 32,
        "items": 1,
        "source": "test",
    }
    return BudgetHead.model_validate(fields | changes)


@pytest.fixture
def half_busy(tmp_path: Path) -> Path:
    """Left flat, right noisy."""
    levels = np.full((60, 200, 3), 128, np.uint8)
    levels[:, 110:] = photo(60, 90) // 2 + np.random.default_rng(0).integers(0, 100, (60, 90, 3))
    Image.fromarray(levels).save(tmp_path / "in.png")
    return tmp_path


def run_budget(folder: Path, head: BudgetHead, *, report: bool = False, **options: Any) -> dict[str, Any]:
    """One run; the experts are told apart by how much they brighten."""
    ensemble = ensemble_of(cheap=enlarge, dear=lambda lr_BCHW: enlarge(lr_BCHW) + 0.1)
    ensemble.identity["fusion"]["kind"] = "fusion"
    (folder / "head.json").write_text(head.model_dump_json())
    chosen = Options(tile=40, **options)
    request = Request(
        folder / "in.png", folder / "out", chosen, report=report, budget_head=folder / "head.json", as_json=True
    )
    assert carry_out(request, ensemble) == DONE
    return json.loads((folder / "out" / "in.png.json").read_text())


def test_the_dear_expert_runs_where_the_detail_is(half_busy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run_budget(half_busy, head_for("cheap", "dear"), budget=0.6, report=True)
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


def test_a_larger_budget_never_spends_less(half_busy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = []
    for budget in (0.34, 0.5, 0.75, 1.0):
        run_budget(half_busy, head_for("cheap", "dear"), budget=budget)
        plans.append(json.loads(capsys.readouterr().out)["plans"]["in"])
    assert [plan["spent"] for plan in plans] == sorted(plan["spent"] for plan in plans)
    losses = [plan["predicted_loss_db"] for plan in plans]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-9)


def test_a_loss_can_be_asked_for(half_busy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_budget(half_busy, head_for("cheap", "dear"), max_loss=0.03)
    plan = json.loads(capsys.readouterr().out)["plans"]["in"]
    assert plan["predicted_loss_db"] <= 0.03
    assert plan["spent"] < 1


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (head_for("cheap", "other"), "is for cheap, other"),
        (head_for("cheap", "dear", weights_sha256={"dear": "0" * 64}), "not those the budget was fitted for"),
    ],
)
def test_a_head_for_other_experts_is_refused(half_busy: Path, head: BudgetHead, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        run_budget(half_busy, head, budget=0.5)


def test_without_a_model_there_is_no_budget(half_busy: Path) -> None:
    (half_busy / "head.json").write_text(head_for("cheap", "dear").model_dump_json())
    ensemble = ensemble_of(cheap=enlarge, dear=enlarge)
    with pytest.raises(Refusal, match="no fusion model"):
        Buyer.load(half_busy / "head.json", ensemble, Options(budget=0.5))


def test_fit_from_a_real_cache(tmp_path: Path) -> None:
    """Two folders of images, one sharp and dear, one blurred and cheap: the sharp one is bought where it matters."""
    rng = np.random.default_rng(0)
    for number in range(6):
        hr = np.full((192, 128, 3), 120, np.uint8)
        hr[:96] = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        image_of = Image.fromarray(hr)
        small = image_of.resize((32, 48), Image.Resampling.BICUBIC)
        blurred = small.resize((128, 192), Image.Resampling.BICUBIC)
        sharp = Image.blend(image_of, blurred, 0.3)
        for folder, picture in (("hr", image_of), ("lr", small), ("cheap", blurred), ("dear", sharp)):
            (tmp_path / folder).mkdir(exist_ok=True)
            picture.save(tmp_path / folder / f"{number}.png")
    folders = [str(tmp_path / name) for name in ("cheap", "dear")]
    sources = ["--hr", str(tmp_path / "hr"), "--lr", str(tmp_path / "lr"), "--out", str(tmp_path / "cache")]
    assert run(import_main, ["import-images", *folders, *sources]) == DONE
    words = [tmp_path / "cache", "--seconds", "cheap=1,dear=3", "--out", tmp_path / "head.json"]
    words += ["--check", tmp_path / "cache", "--record", tmp_path / "curve.md"]
    assert run(budget_fit.main, [str(word) for word in words]) == DONE
    head = load_settings(BudgetHead, tmp_path / "head.json")
    assert head.order == ("cheap", "dear")
    flat, busy = torch.full((1, 3, 16, 16), 0.5), image(16, 16)
    measures, energies = zip(*(measure_tile(lr_BCHW, enlarge(lr_BCHW)) for lr_BCHW in (flat, busy)), strict=True)
    gains_NK, _ = head.predict(np.array(measures), np.array(energies))
    assert gains_NK[1, 0] > 100 * gains_NK[0, 0]
    rows = [
        line.split("|")
        for line in (tmp_path / "curve.md").read_text().splitlines()
        if line.startswith("| ") and "%" in line
    ]
    spent, scores = ([float(row[column].strip(" %")) for row in rows] for column in (2, 3))
    assert spent == sorted(spent)
    assert scores == sorted(scores)
    # Two thirds of the area are tiles with noise: a quarter and two thirds of the rest are enough for everything.
    assert scores[-3] == pytest.approx(scores[-1], abs=0.01)
    assert scores[-3] > scores[0] + 10
