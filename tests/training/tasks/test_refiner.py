"""Task refiner: from a rendered cache, two seeds a crop, its terms, resumed bit for bit, into a file that refines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from fusion.__main__ import main as fusion_main
from fusion.refinement.native.open import open_native
from fusion.refinement.presets import Blend
from fusion.refinement.refine import refine
from fusion.training.losses.perceptual import LPIPS, LpipsFeatures
from fusion.training.settings import TrainSettings
from fusion.training.sources.fused import FusedSource
from fusion.training.tasks.refiner import PerceptualTable, RefinerTask
from imaging import command
from imaging.metrics.perceptual import TRUNK_FILE
from imaging.paths import ENVIRONMENT
from imaging.settings import parse_settings
from tests.imaging.test_metrics import save_trunk
from tests.refinement.parts import need_diffusion
from tests.training.parts import write_config, write_pictures, write_tiny_expert

need_diffusion()
PLAN: dict[str, Any] = {
    "task": "refiner",
    "run": "replaced",
    "steps": 6,
    "seed": 3,
    "device": "cpu",
    "ema": 0.5,
    "network": {"name": "refiner", "settings": {"widths": [8, 16]}},
    "data": {"patch": 16, "batch": 2, "hold_out": 2},
    "optimizer": {"lr": 1e-3},
    "adversarial": {"weight": 0.02, "start": 0.5, "features": 4},
    "stages": [
        {"until": 0.34, "losses": {"flow": 1.0}},
        {"until": 1.0, "losses": {"texture": 1.0, "mean": 100.0, "l1": 1.0, "flat": 10.0, "fft": 0.5}},
    ],
    "validation": {"every": 3},
    "checkpoint": {"every": 2},
    "export": {"name": "refiner", "dtype": "fp16"},
    "log": {"images": 0},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expert's images of six pictures, by the command."""
    folder = tmp_path_factory.mktemp("rendered")
    expert = write_tiny_expert(folder / "a.safetensors", 0)
    words = [
        "--model",
        "none",
        "--experts",
        expert,
        "--hr",
        write_pictures(folder / "hr", 6, (96, 112)),
        "--device",
        "cpu",
    ]
    words = ["render", *words, "--out", folder / "cache"]
    assert command.run(fusion_main, [str(word) for word in words]) == 0
    return folder / "cache"


@pytest.fixture
def trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random AlexNet where LPIPS looks for its trunk."""
    path = tmp_path / "pretrained" / "metrics" / Path(TRUNK_FILE).with_suffix(".safetensors").name
    path.parent.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in save_trunk(tmp_path / "trunk.pt", seed=3).items()}, path)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "pretrained"))
    return path


def settings_of(cache: Path, **changes: object) -> TrainSettings:
    return parse_settings(
        TrainSettings, {**PLAN, "data": {**PLAN["data"], "cache": str(cache)}, **changes}, where="test"
    )


def test_a_batch_holds_every_crop_twice(cache: Path) -> None:
    source = FusedSource(settings_of(cache))
    batch = source.finish(source.draw(0), torch.device("cpu"))
    assert batch.sr_BECHW is not None
    assert batch.hr_BCHW.shape == batch.sr_BECHW[:, 0].shape == (4, 3, 64, 64)
    for one in (batch.lr_BCHW, batch.hr_BCHW, batch.sr_BECHW):
        assert torch.equal(one[0::2], one[1::2])
        assert not torch.equal(one[0], one[2])
    whole = next(iter(source.held_out()))
    assert len(whole.lr_BCHW) == 1


def test_lpips_among_three_is_lpips_of_each_two(trunk: Path) -> None:
    first, second, truth = torch.rand(3, 2, 3, 64, 64)
    near, apart = LpipsFeatures(trunk)(first, second, truth)
    one = LPIPS(trunk)
    torch.testing.assert_close(near, (one(first, truth) + one(second, truth)) / 2)
    torch.testing.assert_close(apart, one(first, second))


def test_the_mean_term_is_blind_to_texture_that_seeds_do_not_share(cache: Path, trunk: Path) -> None:
    """Independent noise of two seeds costs nothing in expectation, the same noise in both its square."""
    torch.manual_seed(0)
    task = RefinerTask(settings_of(cache))
    batch = task.source.finish(task.source.draw(0), torch.device("cpu"))

    def mean_term(shared: bool) -> float:
        def network(fused_BCHW: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            noise = torch.randn_like(fused_BCHW) * 0.2
            return noise[::2].repeat_interleave(2, 0) if shared else noise

        return float(task.predict(network, batch, 5).terms["mean"])  # pyright: ignore[reportArgumentType] (no module)

    assert mean_term(shared=True) - mean_term(shared=False) == pytest.approx(0.04, abs=0.015)


def test_it_trains_resumes_bit_for_bit_and_refines(
    cache: Path, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "refiner.yaml", PLAN)
    words = ["--config", str(config), "--cache", str(cache), f"weights.lpips={trunk}"]
    assert command.run(train.main, [*words, f"run={tmp_path / 'whole'}", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["scores"].keys() == {"refined", "refined by half", "fused"}
    assert summary["scores"]["refined"]["lpips"] > 0
    assert summary["teacher"]["architecture"] == "ensemble of a"
    stopped = [*words, f"run={tmp_path / 'stopped'}"]
    assert command.run(train.main, [*stopped]) == 0
    for path in (tmp_path / "stopped" / "checkpoints").glob("step_*[46].pt"):
        path.unlink()
    (tmp_path / "stopped" / "refiner.safetensors").unlink()
    assert command.run(train.main, [*stopped, "--resume", "auto"]) == 0
    first, again = (load_file(tmp_path / name / "refiner.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert first["unet.conv_in.weight"].dtype == torch.float16

    refiner = open_native(str(tmp_path / "whole" / "refiner.safetensors"), torch.device("cpu"))
    fused_CHW = torch.rand(3, 64, 64)
    assert refine(refiner, fused_CHW, None, Blend()).guard["change_rms"] > 0


def test_other_networks_are_refused(cache: Path, trunk: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "refiner.yaml", {**PLAN, "network": {"name": "msg"}})
    assert command.run(train.main, ["--config", str(config), "--cache", str(cache), f"run={tmp_path}"]) == 2


def test_a_refiner_is_judged_at_both_strengths(trunk: Path) -> None:
    truth = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    worse = (truth + 0.2).clamp(0, 1)
    whole, half = PerceptualTable(), PerceptualTable()
    for table, refined, by_half in ((whole, truth, worse), (half, worse, truth)):
        table.add("refined", "a", refined, truth)
        table.add("refined by half", "a", by_half, truth)
    assert whole.merit("refined") == pytest.approx(half.merit("refined"))
    assert whole.merit("refined by half") < half.merit("refined by half") == pytest.approx(0)
