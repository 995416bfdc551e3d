"""Experts that learn from degraded images: every LR crop can be made again from its record, runs resume bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import train as command
from fusion.training.settings import TrainSettings
from fusion.training.sources.degraded import CONTEXT, degradation_of
from fusion.training.sources.folder import FolderSource
from fusion.training.tasks.expert import ExpertTask
from fusion.training.tasks.networks import build_network
from imaging.command import REFUSED
from imaging.command import run as run_command
from imaging.degrade import DegradeSettings, degrade
from imaging.refusal import Refusal
from imaging.settings import load_settings
from tests.training.loop.parts import last_state, power_cut, run
from tests.training.parts import (
    KINDS,
    expert_document,
    expert_settings,
    fusion_settings,
    make_cache,
    write_config,
    write_pictures,
)

ROOT = Path(__file__).parents[3]
MIXED = ROOT / "configs" / "degrade_mixed.yaml"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As large as one degraded crop with its context, so that the crop is the whole image."""
    return write_pictures(tmp_path_factory.mktemp("hr"), size=(96, 96))


def settings_of(folder: Path, run: Path, **changes) -> TrainSettings:
    data = {"hr": [str(folder)], "patch": 8, "batch": 4, "hold_out": 2, "degrade": str(MIXED)}
    return expert_settings(folder, run, **{"data": {**data, **changes.pop("data", {})}, **changes})


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_every_crop_can_be_made_again_from_its_record(pictures, tmp_path):
    settings = settings_of(pictures, tmp_path / "run", augment={"flip": False, "rotate": False}, seed=5)
    source, degrade_settings = FolderSource(settings), settings.data.degrade
    assert degrade_settings is not None
    inner, steps_seen = slice(CONTEXT, -CONTEXT), set()
    for step in range(5):
        batch = source.draw(step)
        assert batch.lr_BCHW.dtype == torch.uint8 and batch.lr_BCHW.shape == (4, 3, 8, 8)
        for row, item in enumerate(batch.items):
            whole = pixels(pictures / f"{item}.png")
            record = degradation_of(degrade_settings, (96, 96), settings.seed, step * 4 + row)
            expected = degrade(whole[None].float() / 255, record)[0, :, inner, inner]
            assert torch.equal(batch.lr_BCHW[row].float() / 255, expected)
            assert torch.equal(batch.hr_BCHW[row], whole[:, 32:-32, 32:-32])
            steps_seen |= {one.kind for one in record.steps}
    assert steps_seen >= {"blur", "resize", "jpeg"} and steps_seen & {"gaussian", "poisson"}


def test_records_differ_between_samples_and_seeds():
    settings = load_settings(DegradeSettings, MIXED)
    places = [(seed, sample) for seed in (0, 1) for sample in range(6)]
    records = [degradation_of(settings, (96, 96), seed, sample) for seed, sample in places]
    assert records == [degradation_of(settings, (96, 96), seed, sample) for seed, sample in places]
    drawn = [record for record in records if record.steps]
    assert len({record.model_dump_json() for record in drawn}) == len(drawn) > 6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_has_the_same_bits_and_scores_clean_and_degraded(pictures, tmp_path, workers):
    augment = {"crop_scale": 0.5, "jitter": 0.5, "cutblur": 0.5}
    whole = settings_of(pictures, tmp_path / "whole", augment=augment, steps=4)
    summary = run(whole)
    cut = settings_of(pictures, tmp_path / "cut", augment=augment, steps=4, data={"workers": workers})
    with power_cut(step=3):
        run(cut)
    assert last_state(tmp_path / "cut")["step"] == 2
    run(cut, resume=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    rows = summary["scores"]
    assert rows.keys() == {"model", "bicubic", "model degraded", "bicubic degraded"}
    assert rows["bicubic degraded"]["psnr_y"] < rows["bicubic"]["psnr_y"] - 0.5


def test_degraded_images_choose_and_are_the_same_whatever_the_seed(pictures, tmp_path):
    tasks = [ExpertTask(settings_of(pictures, tmp_path / "x", seed=seed), KINDS) for seed in (0, 9)]
    assert {task.judged for task in tasks} == {"model degraded"}
    assert ExpertTask(expert_settings(pictures, tmp_path / "x"), KINDS).judged == "model"
    for one, other in zip(*(task.source.held_out_degraded() for task in tasks), strict=True):
        assert torch.equal(one.lr_BCHW, other.lr_BCHW)
    clean, spoilt = next(tasks[0].source.held_out()), next(tasks[0].source.held_out_degraded())
    assert torch.equal(clean.hr_BCHW, spoilt.hr_BCHW) and not torch.equal(clean.lr_BCHW, spoilt.lr_BCHW)


def test_plain_bicubic_said_in_words_is_the_default(pictures, tmp_path):
    said = FolderSource(settings_of(pictures, tmp_path / "x", data={"degrade": {"kind": "bicubic"}}))
    silent = FolderSource(expert_settings(pictures, tmp_path / "x"))
    assert torch.equal(said.draw(3).lr_BCHW, silent.draw(3).lr_BCHW)
    assert list(said.held_out_degraded()) == []


def test_the_named_file_is_written_out_in_full_and_scales_must_agree(pictures, tmp_path):
    named, inline = (
        settings_of(pictures, tmp_path, data={"degrade": how})
        for how in (str(MIXED), yaml.safe_load(MIXED.read_text()))
    )
    assert named.data.degrade == inline.data.degrade == load_settings(DegradeSettings, MIXED)
    assert TrainSettings.model_validate(named.model_dump(mode="json")) == named
    half = settings_of(pictures, tmp_path, data={"scale": 2})
    assert half.data.degrade is not None and half.data.degrade.scale == 2
    with pytest.raises(Refusal, match=r"degrade.scale is 4 and scale is 2"):
        settings_of(pictures, tmp_path, data={"scale": 2, "degrade": {"kind": "mixed", "scale": 4}})
    with pytest.raises(Refusal, match="no such file"):
        settings_of(pictures, tmp_path, data={"degrade": "nowhere.yaml"})
    with pytest.raises(Refusal, match=r"data.degrade.clea"):
        settings_of(pictures, tmp_path, data={"degrade": {"kind": "mixed", "clea": 0.1}})
    with pytest.raises(Refusal, match="no image has 40 LR pixels"):
        FolderSource(settings_of(pictures, tmp_path, data={"patch": 24}))


def test_fusion_refuses_what_only_experts_can_follow(tmp_path):
    cache = make_cache(tmp_path, count=8)
    data = {"cache": str(cache), "patch": 8, "batch": 4, "hold_out": 4}
    degraded = fusion_settings(cache, tmp_path / "run", data={**data, "degrade": {"kind": "mixed"}})
    config = write_config(tmp_path / "c.yaml", degraded.model_dump(mode="json"))
    with pytest.raises(Refusal, match="a cache holds the experts' outputs for the LR images"):
        command.main(["--config", str(config)])
    assert run_command(command.main, ["--config", str(config)]) == REFUSED
    config = write_config(tmp_path / "d.yaml", fusion_settings(cache, tmp_path / "run").model_dump(mode="json"))
    with pytest.raises(Refusal, match="is 2; the experts of .* enlarge 4 times"):
        command.main(["--config", str(config), "data.scale=2"])
    with pytest.raises(Refusal, match="start_new"):
        command.main(["--config", str(config), "network.start_from=a.safetensors", "network.start_new=[refine]"])
    assert not (tmp_path / "run").exists()


def test_the_config_for_photographs_builds_and_its_file_trains(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = load_settings(TrainSettings, ROOT / "configs" / "expert_msg_real.yaml")
    assert settings.data.degrade == load_settings(DegradeSettings, MIXED)
    with torch.device("meta"):
        network = build_network(command.NETWORKS, settings.network, seed=0)
    assert settings.data.patch % network.padding.multiple == 0  # pyright: ignore[reportAttributeAccessIssue]
    document = expert_document(pictures, tmp_path / "run", steps=2)
    config = write_config(tmp_path / "c.yaml", document)
    assert command.main(["--config", str(config), "data.degrade=configs/degrade_mixed.yaml"]) == 0
    assert "mixed" in (tmp_path / "run/config.yaml").read_text()
