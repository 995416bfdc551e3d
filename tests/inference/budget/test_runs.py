"""Runs under a budget: tiles get what they need, whole folders share it, a resumed run plans the same."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.budget.model import MEASURES, BudgetModel
from fusion.budget.run import BudgetRunner
from fusion.inference.command import Request, carry_out
from fusion.inference.ensemble import Answer
from fusion.inference.options import Options
from fusion.inference.parser import add_arguments, request_of
from imaging.command import DONE, FAILURES_LISTED
from imaging.refusal import Refusal
from tests.inference.budget.parts import budget_model_for, run_budget
from tests.inference.parts import enlarge, ensemble_of, photo, pixels

if TYPE_CHECKING:
    from fusion.inference.ensemble import Place, RunExpert


@pytest.fixture
def half_busy(tmp_path: Path) -> Path:
    """Left flat, right noisy."""
    levels = np.full((60, 200, 3), 128, np.uint8)
    levels[:, 110:] = photo(60, 90) // 2 + np.random.default_rng(0).integers(0, 100, (60, 90, 3))
    Image.fromarray(levels).save(tmp_path / "in.png")
    return tmp_path


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
