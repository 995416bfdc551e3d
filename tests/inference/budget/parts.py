"""Shared by the tests of the budget: a budget model, a run under it and a cache to learn one from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cache_tools.__main__ import main as import_main
from fusion.budget.model import MEASURES, BudgetModel
from fusion.budget.plan import GainPrediction
from fusion.inference.command import Request, carry_out
from fusion.inference.options import Options
from imaging.command import DONE, run
from tests.inference.parts import enlarge, ensemble_of

if TYPE_CHECKING:
    from pathlib import Path


def menu_of(rng: np.random.Generator, choices: int) -> list[float]:
    """Rising costs, now and then two alike."""
    return list(np.cumsum(rng.choice([0.0, 0.3, 1.0, 2.5], choices, p=[0.1, 0.3, 0.3, 0.3])) + 0.5)


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


def prediction_of(rng: np.random.Generator, tiles: int, choices: int) -> GainPrediction:
    """Random gains, errors and sizes; the first choice gains nothing."""
    gains_NM = np.concatenate([np.zeros((tiles, 1)), rng.uniform(0, 1, (tiles, choices - 1))], 1)
    return GainPrediction(gains_NM, rng.uniform(0.5, 2, tiles), rng.uniform(10, 20, tiles))
