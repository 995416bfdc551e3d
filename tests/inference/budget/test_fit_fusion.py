"""What a budget learns from the images of a fusion, and beside a model that has just been trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from cache_tools.read.reader import CacheReader
from fusion.budget import fit as budget_fit
from fusion.budget.cells import errors_of_fusion, fused_images, gather
from fusion.budget.fit import fit, fit_after_training, make_menu
from fusion.budget.model import BUDGET_FILE, BudgetModel
from fusion.network import ExpertSlot, FusionSettings, FusionSR
from fusion.network.save import save_model
from imaging.command import DONE, run
from imaging.refusal import Refusal
from tests.cache.parts import make_cache
from tests.fusion.parts import random_record

if TYPE_CHECKING:
    from pathlib import Path


def fused_model(reader: CacheReader) -> FusionSR:
    slots = tuple(ExpertSlot(name=name, channels=reader.channels[name]) for name in reader.experts)
    model = FusionSR(FusionSettings(experts=slots)).eval()
    model.set_base(random_record(reader.experts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


def test_a_fusion_is_asked_with_these_experts_features_only(taps: Path) -> None:
    reader = CacheReader(taps)
    model, item = fused_model(reader), next(iter(reader))
    menu = [("e1",), ("e1", "e0")]
    images = fused_images(model, item, menu)
    for names, found in zip(menu, images, strict=True):
        chosen = torch.stack([item.sr_BECHW[:, item.experts.index(name)] for name in names], 1)
        with torch.no_grad():
            output = model(item.lr_BCHW, chosen, {name: item.feats[name] for name in names}, names)
        assert torch.equal(found, output.image_BCHW.float())
        assert not found.requires_grad


@pytest.fixture(scope="module")
def taps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts with features, three pictures of 1280, 1440 and 1024 LR pixels."""
    return make_cache(tmp_path_factory.mktemp("taps"), [(32, 40), (36, 40), (32, 32)])


def test_the_budget_of_a_model_is_learned_from_its_own_images(taps: Path, tmp_path: Path) -> None:
    """From the file, with its features: the errors are those of the images that the model gives."""
    reader, seconds = CacheReader(taps), {"e0": 1.0, "e1": 2.0}
    model = fused_model(reader)
    save_model(model, tmp_path / "model.safetensors")
    words = [
        taps,
        "--seconds",
        "e0=1,e1=2",
        "--model",
        tmp_path / "model.safetensors",
        "--out",
        tmp_path / "budget.json",
    ]
    assert run(budget_fit.main, [str(word) for word in words]) == DONE
    budget_model = BudgetModel.read(tmp_path / "budget.json")
    assert budget_model.gains_of == "fusion"
    assert budget_model.menu == make_menu(model.base.record, seconds)
    cells = gather(reader, errors_of_fusion(model, budget_model.menu))
    assert budget_model.error == pytest.approx(budget_fit._ridge(cells, cells.errors_XM[:, -1]), rel=1e-3, abs=1e-4)
    for choice, found in enumerate(budget_model.gains, 1):
        gains_X = cells.errors_XM[:, 0] - cells.errors_XM[:, choice]
        assert found == pytest.approx(budget_fit._ridge(cells, gains_X), rel=1e-3, abs=1e-4)
    item = next(iter(reader))
    images = budget_fit._images_of(budget_model, model.base.record, model)(item)
    assert all(torch.equal(*pair) for pair in zip(images, fused_images(model, item, budget_model.menu), strict=True))


def test_a_fusion_is_dearer_to_learn_from_than_a_blend(taps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the network runs for every selection, fewer items are enough."""
    area = sum(entry.height * entry.width for entry in CacheReader(taps).entries)
    monkeypatch.setattr(budget_fit, "ENOUGH", area)
    monkeypatch.setattr(budget_fit, "ENOUGH_FUSED", area - 1)
    seconds, model = {"e0": 1.0, "e1": 2.0}, fused_model(CacheReader(taps))
    cells = [2 * 3, 3 * 3, 2 * 2]
    assert fit(taps, seconds)[0].cells == sum(cells)
    assert fit(taps, seconds, model=model)[0].cells == cells[0] + cells[2]
    model.record = model.record.model_copy(update={"verdict": "base"})
    blended, record = fit(taps, seconds, model=model)
    assert (blended.cells, blended.gains_of) == (sum(cells), "blend")
    assert record is model.base.record


def test_after_training_the_budget_lies_beside_the_model(taps: Path, tmp_path: Path) -> None:
    """A trained fusion learns from what was held out, a closed form from what was trained on; both say where."""
    reader, model = CacheReader(taps), fused_model(CacheReader(taps))
    items, costs = [entry.id for entry in reader.entries], {"e0": 1.0, "e1": 2.0}
    for verdict, cells in (("fused", 2 * 3 + 3 * 3), ("base", 2 * 2)):
        model.record = model.record.model_copy(update={"verdict": verdict})
        file = tmp_path / verdict / "model.safetensors"
        save_model(model, file)
        given = {"training_items": items[2:], "held_out_items": items[:2], "device": "cpu"}
        assert fit_after_training(file, taps, ("e0", "e1"), lambda: costs, **given) == BUDGET_FILE
        found = BudgetModel.read(file.parent / BUDGET_FILE)
        assert (found.cells, found.measured_on, found.seconds) == (cells, "cpu", costs)
        assert found.gains_of == ("fusion" if verdict == "fused" else "blend")


@pytest.mark.parametrize(
    ("costs", "says"),
    [
        ({"e0": 1.0, "e1": None}, "cache was made with: e1"),
        ({"e0": 1.0, "e1": 2.0, "e2": 3.0}, "not the networks that the cache was made with"),
        (None, "cannot be timed: bench: broken"),
    ],
)
def test_a_budget_that_cannot_be_had_is_told_and_does_not_spoil_the_training(
    taps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, costs: dict[str, float | None] | None, says: str
) -> None:
    def time_experts() -> dict[str, float | None]:
        if costs is None:
            raise Refusal("broken", where="bench", cure="mend it")
        return costs

    given = {"training_items": [], "held_out_items": [], "device": "cpu"}
    file = tmp_path / "model.safetensors"
    with caplog.at_level("WARNING"):
        assert fit_after_training(file, taps, ("e0", "e1"), time_experts, **given) is None
    assert says in caplog.text
    assert not list(tmp_path.iterdir())
