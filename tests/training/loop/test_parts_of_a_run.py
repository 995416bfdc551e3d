"""Config, schedule, curriculum, EMA, best weights, export: each against what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts

import train as command
from fusion.training.loop.checkpoint import keep_best
from fusion.training.loop.export import export_weights, load_exported
from fusion.training.loop.optimizers import learning_rate
from fusion.training.loop.state import averaged, decay_at
from fusion.training.losses.curriculum import weights_at
from fusion.training.settings import DEFAULT_STAGES, ScheduleSettings, TrainSettings
from imaging.refusal import Refusal
from imaging.settings import load_settings
from tests.training.parts import expert_settings, quiet_environment

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["expert_edsr_s", "fusion_x4"])
def test_the_configs_load_and_print_whole(name, capsys):
    path = ROOT / "configs" / f"{name}.yaml"
    loaded = load_settings(TrainSettings, path, ["optimizer.lr=0.5"])
    assert loaded.optimizer.lr == 0.5
    assert command.main(["--config", str(path), "--print-config", "optimizer.lr=0.5"]) == 0
    assert TrainSettings.model_validate(yaml.safe_load(capsys.readouterr().out)) == loaded


def test_mistyped_settings_end_with_code_2_and_one_line():
    words = [sys.executable, "train.py", "--config", "configs/fusion_x4.yaml", "optimizer.lrr=1"]
    done = subprocess.run(words, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].endswith("did you mean 'optimizer.lr'?")


def test_the_seeds_curriculum_is_the_default():
    assert [stage.losses for stage in DEFAULT_STAGES] == [
        {"l1": 1.0},
        {"l1": 0.75, "swt": 0.20, "fft": 0.05},
        {"l1": 0.60, "swt": 0.25, "fft": 0.10, "ssim": 0.05},
    ]
    assert TrainSettings.model_fields["stages"].default == DEFAULT_STAGES
    assert [weights_at(step, 100, DEFAULT_STAGES) for step in (0, 39, 40, 74, 75, 99)] == [
        DEFAULT_STAGES[i].losses for i in (0, 0, 1, 1, 2, 2)
    ]


def test_stages_must_rise_to_the_end(tmp_path):
    with pytest.raises(Refusal, match="stages must rise"):
        expert_settings(tmp_path, tmp_path, stages=[{"until": 0.5, "losses": {"l1": 1.0}}])


def rates(scheduler, optimizer, steps):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_schedule_against_torchs_own():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    expected = rates(CosineAnnealingLR(optimizer, 50, eta_min=0.03), optimizer, 50)
    ours = [learning_rate(step, 50, 0.3, ScheduleSettings(floor=0.1)) for step in range(50)]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    expected = rates(CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=2), optimizer, 70)
    ours = [learning_rate(step, 70, 0.3, ScheduleSettings(cycles=3, growth=2.0)) for step in range(70)]
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 50), st.integers(1, 4), st.floats(0.5, 3), st.floats(0, 1))
def test_the_rate_never_leaves_its_range(steps, warmup, cycles, growth, floor):
    how = ScheduleSettings(warmup=warmup, cycles=cycles, growth=growth, floor=floor)
    found = [learning_rate(step, steps, 1.0, how) for step in range(steps)]
    assert all(0 <= rate <= 1 + 1e-9 for rate in found)
    assert found[: min(warmup, steps)] == sorted(found[: min(warmup, steps)])


def test_the_average_follows_by_the_formula():
    network = nn.Linear(2, 1)
    average = averaged(network, 0.9)
    expected = None
    for update in range(20):
        with torch.no_grad():
            network.weight.fill_(float(update))
        average.update_parameters(network)
        share = decay_at(update, 0.9)
        expected = float(update) if expected is None else share * expected + (1 - share) * update
    assert float(average.module.weight[0, 0]) == pytest.approx(expected, rel=1e-5)
    assert decay_at(10**6, 0.999) == 0.999 and decay_at(0, 0.999) == 0.1


def test_the_best_few_are_kept_and_ties_go_to_the_earlier(tmp_path):
    ranked = []
    for step, psnr in enumerate([30.0, 31.0, 29.0, 31.0, 32.0]):
        ranked = keep_best(ranked, psnr, step, most=3, folder=tmp_path, write=lambda path: path.write_text("w"))
    assert ranked == [(32.0, 4), (31.0, 1), (31.0, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:08d}.safetensors" for step in (1, 3, 4)]


def test_exported_weights_come_back_strictly(tmp_path):
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    export_weights(
        tmp_path / "a.safetensors",
        network.state_dict(),
        architecture="x",
        hyperparameters={},
        provenance={},
        dtype="fp16",
    )
    load_exported(other, tmp_path / "a.safetensors")
    assert torch.equal(other.weight, network.weight.half().float())
    with pytest.raises(Refusal, match="does not fit"):
        load_exported(nn.Linear(4, 2), tmp_path / "a.safetensors")
    with torch.no_grad():
        network.weight.fill_(1e6)
    with pytest.raises(Refusal, match="not finite as fp16"):
        export_weights(
            tmp_path / "b.safetensors",
            network.state_dict(),
            architecture="x",
            hyperparameters={},
            provenance={},
            dtype="fp16",
        )
    assert not (tmp_path / "b.safetensors").exists()
