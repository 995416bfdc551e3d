"""The budget from end to end: train.py fits the budget model, infer.py plans by it, a benchmark draws curves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

import train
from benchmarks.inference import budget as budget_bench
from cache_tools.read.reader import CacheReader
from fusion.__main__ import main as fusion_command
from fusion.budget.fit import fit_after_training
from fusion.budget.model import BudgetModel
from imaging.command import DONE, REFUSED, run
from imaging.files import write_picture
from imaging.resize import downscale_8bit
from infer import command_line
from tests.inference.budget.parts import make_budget_cache
from tests.inference.parts import pixels
from tests.training.parts import fusion_document, make_cache, quiet_environment, write_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of two tiny networks, and a fusion trained from it by the command, with its budget model."""
    folder = tmp_path_factory.mktemp("budget")
    cache = make_cache(folder)
    document = fusion_document(cache, folder / "run", steps=1, checkpoint={"every": 1}, validation={"every": 1})
    config = write_config(folder / "config.yaml", document)
    experts = ",".join(str(folder / f"{name}.safetensors") for name in ("ann", "bob"))
    assert run(train.main, ["--config", str(config), f"data.experts=[{experts}]"]) == DONE
    return folder


def experts_of(place: Path) -> str:
    return ",".join(str(place / f"{name}.safetensors") for name in ("ann", "bob"))


def test_training_writes_a_budget_model_with_measured_costs(place: Path) -> None:
    budget_model = BudgetModel.read(place / "run" / "budget.json")
    assert set(budget_model.experts) == {"ann", "bob"} and len(budget_model.menu) == 3
    assert all(0 < cost < 1e-3 for cost in budget_model.seconds.values())
    assert budget_model.measured_on == "cpu" and set(budget_model.weights_sha256) == {"ann", "bob"}
    assert budget_model.cells == 8, "eight images of one cell each to train on: the held-out four are not used"


def test_the_budget_model_names_the_kind_of_device_without_its_number(place: Path, tmp_path: Path) -> None:
    """Under torchrun each process has a numbered device."""
    shutil.copy(place / "run" / "model.safetensors", tmp_path)
    items = tuple(entry.id for entry in CacheReader(place / "cache", features=False).entries)
    costs = {"ann": 1e-6, "bob": 2e-6}
    fit_after_training(
        tmp_path / "model.safetensors",
        place / "cache",
        tuple(costs),
        lambda: costs,
        training_items=items,
        held_out_items=items,
        device="cpu:0",
    )
    assert BudgetModel.read(tmp_path / "budget.json").measured_on == "cpu"


def test_without_the_networks_training_logs_why_there_is_no_budget_model(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))  # where the experts lay is not known here
    document = fusion_document(place / "cache", tmp_path / "run", steps=1)
    assert run(train.main, ["--config", str(write_config(tmp_path / "c.yaml", document))]) == DONE
    assert "no budget model, since the experts cannot be timed" in caplog.text
    assert not (tmp_path / "run" / "budget.json").exists()


@pytest.fixture(scope="module")
def bench_images(place: Path) -> Path:
    """Two true images and their LR, larger than the tiles used below."""
    rng = np.random.default_rng(1)
    for number in range(2):
        y, x = np.mgrid[:256, :320] / 25
        levels = np.stack([np.sin(x * (number + 1)) * np.cos(y + shift) for shift in range(3)]) * 0.3 + 0.5
        levels[:, :, 160:] += rng.normal(0, 0.1, (3, 256, 160))
        hr_BCHW = torch.from_numpy(levels.clip(0, 1)).float()[None]
        write_picture(place / "set" / "HR" / f"{number}.png", hr_BCHW)
        write_picture(place / "set" / "LR" / f"{number}.png", downscale_8bit(hr_BCHW))
    return place / "set"


def test_the_models_own_budget_model_is_found_and_keeps_the_budget(
    place: Path, bench_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-i", bench_images / "LR", "--model", place / "run", "--experts", experts_of(place), "-t", "56", "--json"]
    spent = []
    for share in ("0.4", "0.8", "1"):
        assert run(command_line, [str(word) for word in (*words, "-o", tmp_path / share, "--budget", share)]) == DONE
        plans = json.loads(capsys.readouterr().out)["plans"].values()
        assert all(plan["spent"] <= max(float(share), 0.7) + 1e-6 for plan in plans)  # the cheapest runs in any case
        spent.append([plan["spent"] for plan in plans])
    assert spent[0] <= spent[1] <= spent[2] == [1.0, 1.0]
    assert run(command_line, [str(word) for word in (*words, "-o", tmp_path / "all")]) == DONE
    for name in ("0.png", "1.png"):
        np.testing.assert_array_equal(pixels(tmp_path / "1" / name), pixels(tmp_path / "all" / name))


def test_a_model_without_a_budget_model_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-i", place, "-o", place / "out", "--model", place / "ann.safetensors", "--budget", "0.5"]
    budget_model = place / "budget.json"
    assert not budget_model.exists()
    assert run(command_line, [str(word) for word in words]) == REFUSED
    assert "has no budget model beside it" in capsys.readouterr().err


@pytest.mark.slow
def test_the_bench_draws_the_curve_through_infer(
    place: Path, bench_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in quiet_environment().items():
        monkeypatch.setenv(name, value)
    words = ["--model", place / "run", "--experts", experts_of(place), "--lr", bench_images / "LR"]
    words += ["--hr", bench_images / "HR", "--shares", "0.01", "1", "--record", tmp_path / "curve.md"]
    assert run(budget_bench.main, [str(word) for word in words]) == DONE
    rows = [line.split("|") for line in (tmp_path / "curve.md").read_text().splitlines() if line.startswith("| 1")]
    assert [row[1].strip() for row in rows] == ["1%", "100%"]
    assert rows[1][2].strip() == "100.0%" and rows[1][5].strip() == "+0.000"
    whole = tmp_path / "whole"
    words = ["-i", bench_images / "LR", "-o", whole, "--model", place / "run", "--experts", experts_of(place)]
    assert run(command_line, [str(word) for word in words]) == DONE
    scores = [
        peak_signal_noise_ratio(
            *(rgb2ycbcr(pixels(folder / f"{number}.png"))[4:-4, 4:-4, 0] for folder in (bench_images / "HR", whole)),
            data_range=255,
        )
        for number in range(2)
    ]
    assert float(rows[1][4]) == pytest.approx(np.mean(scores), abs=2e-3)


def test_a_fusion_of_folders_of_images_serves_other_folders(tmp_path: Path) -> None:
    """Of a closed model there are images alone, for every set others: only its name can be compared."""
    cache = make_budget_cache(tmp_path)
    document = fusion_document(cache, tmp_path / "run", steps=1, checkpoint={"every": 1}, validation={"every": 1})
    document["data"] |= {"hold_out": 2}
    assert run(train.main, ["--config", str(write_config(tmp_path / "c.yaml", document))]) == DONE
    words = ["fit-budget", str(cache), "--seconds", "cheap=1,dear=3", "--model", str(tmp_path / "run")]
    assert run(fusion_command, [*words, "--out", str(tmp_path / "run" / "budget.json")]) == DONE
    rng = np.random.default_rng(9)
    for name, side in (("lr", 32), ("cheap", 128), ("dear", 128)):
        (tmp_path / "new" / name).mkdir(parents=True)
        levels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / "new" / name / "photo.png")
    folders = ",".join(f"images:{tmp_path / 'new' / name}" for name in ("cheap", "dear"))
    words = ["-i", str(tmp_path / "new" / "lr"), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "run")]
    assert run(command_line, [*words, "--experts", folders, "--budget", "1"]) == DONE
    assert pixels(tmp_path / "out" / "photo.png").shape == (128, 128, 3)
