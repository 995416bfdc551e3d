"""What a budget model is learned from: the errors of the blends or of the fusion, cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_tools.read.reader import CacheReader
from fusion.budget import fit as budget_fit
from fusion.budget.cells import errors_of_blends, errors_of_fusion, gather
from fusion.budget.fit import learned, make_menu
from fusion.budget.model import MEASURES, BudgetModel, measure_cells
from fusion.network import ExpertSlot, FusionSettings, FusionSR
from fusion.network.base.blend import BaseBlend
from imaging.command import DONE, run
from imaging.files import read_rgb
from tests.fusion.parts import random_record
from tests.inference.budget.parts import make_budget_cache


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
