"""A budget at work: where its model is found, and the layers of a tile by the experts that were bought."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from fusion.budget.model import BUDGET_FILE, MEASURES
from fusion.budget.run import BudgetRunner, find_budget_model
from fusion.inference.ensemble import EIGHTFOLD, PLAIN, Answer, Fused, Place, layer_names, plain_mean, run_tile
from fusion.inference.jobs import make_jobs, measure_jobs
from fusion.inference.model_selection import DEFAULT
from fusion.inference.upscale import Grid
from imaging.refusal import Refusal
from tests.experts.parts import image
from tests.inference.budget.parts import budget_model_for
from tests.inference.parts import enlarge, ensemble_of, photo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fusion.inference.ensemble import Ensemble


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(photo(60, 130)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def test_the_budget_model_lies_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMPIONSHIP_SR_PRETRAINED", str(tmp_path / "shipped"))
    for folder in ("shipped", "own"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "default.yaml").write_text("experts: [edsr-s]\n")
        with pytest.raises(Refusal, match="no budget model beside it"):
            find_budget_model(DEFAULT if folder == "shipped" else str(tmp_path / folder))
        (tmp_path / folder / BUDGET_FILE).touch()
    assert BUDGET_FILE == "budget.json"
    assert find_budget_model(DEFAULT) == tmp_path / "shipped" / BUDGET_FILE
    for model in (tmp_path / "own", tmp_path / "own" / "model.safetensors"):
        assert find_budget_model(str(model)) == tmp_path / "own" / BUDGET_FILE


GATES = {"dear": 0.7, "cheap": 0.2, "fair": 0.1}


def coloured() -> Ensemble:
    """Three experts that turn and brighten unlike, so that order and turns show; gates that differ; a difficulty."""
    functions = {
        "dear": lambda lr_BCHW: enlarge(lr_BCHW) + torch.linspace(0, 0.1, 4 * lr_BCHW.shape[-1]),
        "cheap": lambda lr_BCHW: enlarge(lr_BCHW) * torch.linspace(0.5, 1, 4 * lr_BCHW.shape[-2])[:, None],
        "fair": lambda lr_BCHW: enlarge(lr_BCHW) ** 2,
    }

    def fuse(lr_BCHW: torch.Tensor, answers: Mapping[str, Answer]) -> Fused:
        mean = plain_mean(lr_BCHW, answers)
        gates = [torch.full_like(mean.image_BCHW[:, :1], GATES[name]) for name in answers]
        return Fused(mean.image_BCHW, torch.cat(gates, 1), mean.image_BCHW[:, :1].square())

    return replace(ensemble_of(**functions), fuse=fuse, has_difficulty=True)


@pytest.mark.parametrize("turns", [PLAIN, EIGHTFOLD])
@pytest.mark.parametrize("names", [("dear",), ("cheap", "fair"), ("cheap",), ("dear", "cheap", "fair")])
def test_layers_of_a_bought_tile(names: tuple[str, ...], turns: tuple[int, ...], picture: Path) -> None:
    """The image by those bought; the cheapest expert's image in any case; gates of the others nought."""
    ensemble = coloured()
    menu = [("cheap",), ("dear",), ("cheap", "fair"), ("dear", "cheap", "fair")]
    seconds = {"cheap": 1.0, "dear": 1.5, "fair": 2.0}
    budget_model = budget_model_for("x", "y", menu=menu, seconds=seconds, gains=[[0.0] * len(MEASURES)] * 3)
    runner = BudgetRunner(budget_model, budget=0.5, max_loss=None)
    grid = Grid.of(60, 130, 0, 4, 1)
    sized, _ = measure_jobs(make_jobs(picture, picture.parent / "out"))
    runner.plan(sized, lambda _source: grid)
    runner._plans["in"].chosen_PQ[0, 0] = menu.index(names)
    place, lr_BCHW = Place("in", 0, 0, 60, 130), image(10, 14)
    plain = runner.run_tile(ensemble, lr_BCHW, place, turns=turns)
    torch.testing.assert_close(plain, run_tile(ensemble, lr_BCHW, place, turns=turns, names=names))
    found = runner.run_tile(ensemble, lr_BCHW, place, turns=turns, maps=True)
    layers = dict(zip(["r", "g", "b", *runner.layer_names(ensemble)], found, strict=True))
    torch.testing.assert_close(found[:3], plain)
    alone = run_tile(ensemble, lr_BCHW, place, turns=turns, names=["cheap"])
    torch.testing.assert_close(torch.stack([layers[f"cheap/{colour}"] for colour in "rgb"]), alone)
    for name in ensemble.names:
        expected = torch.full((40, 56), GATES[name] if name in names else 0.0)
        torch.testing.assert_close(layers[f"gate/{name}"], expected)
    maps = run_tile(ensemble, lr_BCHW, place, turns=turns, names=names, maps=True)
    torch.testing.assert_close(layers["difficulty"], maps[-1])


def test_the_expert_that_runs_for_the_report_knows_where_its_tile_lies(picture: Path) -> None:
    """A folder of images looks its answer up by the place: also where the plan has another expert."""

    def brightened(lr_BCHW: torch.Tensor, place: Place, _turn: int) -> Answer:
        return Answer(enlarge(lr_BCHW) + (place.left + 10 * place.top) / 1000, None)

    ensemble = ensemble_of(cheap=enlarge, dear=enlarge)
    ensemble = replace(ensemble, experts={**ensemble.experts, "cheap": brightened})
    menu, gains = [["cheap"], ["dear"], ["cheap", "dear"]], [[0.0] * len(MEASURES)] * 2
    runner = BudgetRunner(budget_model_for("cheap", "dear", menu=menu, gains=gains), 0.5, None)
    grid = Grid.of(60, 130, 0, 4, 1)
    sized, _ = measure_jobs(make_jobs(picture, picture.parent / "out"))
    runner.plan(sized, lambda _source: grid)
    runner._plans["in"].chosen_PQ[0, 0] = 1
    lr_BCHW = image(10, 14)
    found = runner.run_tile(ensemble, lr_BCHW, Place("in", 2, 5, 60, 130), maps=True)
    torch.testing.assert_close(found[3:6], enlarge(lr_BCHW)[0] + 0.025)


def test_layers_have_the_names_they_have_without_a_budget() -> None:
    ensemble = coloured()
    runner = BudgetRunner(budget_model_for("cheap", "dear"), 0.5, None)
    names = runner.layer_names(ensemble)
    assert names == ["cheap/r", "cheap/g", "cheap/b", "gate/dear", "gate/cheap", "gate/fair", "difficulty"]
    assert set(names) < set(layer_names(ensemble))
    assert runner.layer_names(replace(ensemble, has_difficulty=False)) == names[:-1]


def test_an_image_that_was_not_planned_is_refused() -> None:
    runner = BudgetRunner(budget_model_for("cheap", "dear"), 0.5, None)
    runner.plan([], lambda _source: pytest.fail("there is no image"))
    with pytest.raises(Refusal, match="could not be read when the run was planned"):
        runner.document("x")
