"""Config, schedule, curriculum, augmentations, EMA, best weights, export: each against what it promises."""

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
from fusion.training.settings import DEFAULT_STAGES, AugmentSettings, ScheduleSettings, TrainSettings
from fusion.training.sources.augment import Augmentation, dihedral
from fusion.training.sources.folder import FolderSource, held_out_indices
from fusion.training.sources.sampling import Purpose, draw, samples_of_step
from imaging.refusal import Refusal
from imaging.resize import downscale
from imaging.settings import load_settings
from tests.training.parts import expert_settings, quiet_environment, write_pictures

ROOT = Path(__file__).parents[2]


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
    assert done.stderr.strip().splitlines()[-1].endswith("did you mean 'lr'?")


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


@given(st.integers(0, 1000), st.integers(1, 8), st.integers(1, 4))
def test_processes_share_the_samples_of_a_step(step, part, world):
    shares = [list(samples_of_step(step, part * world, rank, world)) for rank in range(world)]
    assert [one for share in shares for one in share] == list(samples_of_step(step, part * world))


def test_streams_of_random_numbers_do_not_meet():
    drawn = {
        tuple(draw(seed, purpose, place).integers(2**60, size=2))
        for seed in (0, 1)
        for purpose in Purpose
        for place in (0, 1)
    }
    assert len(drawn) == 2 * len(Purpose) * 2


def test_crops_are_aligned_and_never_from_held_out_images(tmp_path):
    folder = write_pictures(tmp_path / "hr")
    source = FolderSource(expert_settings(folder, tmp_path / "run"))
    held = {batch.items[0] for batch in source.held_out()}
    assert len(held) == 2
    for step in range(8):
        batch = source.finish(source.draw(step), torch.device("cpu"))
        assert not held & set(batch.items)
        assert batch.lr_BCHW.shape == (4, 3, 8, 8) and batch.hr_BCHW.shape == (4, 3, 32, 32)
        inner = slice(2, -2)  # further out, the crop's own downscale lacks the whole image's context
        apart = (downscale(batch.hr_BCHW) - batch.lr_BCHW)[..., inner, inner].abs().max()
        assert float(apart) < 1.01 / 255


@pytest.mark.parametrize("name", ["jitter", "crop_scale", "mixup"])
def test_augmented_pairs_still_belong_together(name):
    rng = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(
        torch.rand(4, 3, 6, 6, generator=rng), size=(128, 128), mode="bicubic"
    ).clamp(0.4, 0.6)
    hr = (smooth * 255).round().byte()
    lr = (downscale(smooth) * 255).round().byte()
    augmentation = Augmentation(AugmentSettings(**{name: 1.0}), seed=3, live=True)
    pairs = [augmentation.sample(lr[i], hr[i], 16 if name == "crop_scale" else 32, i) for i in range(4)]
    lr_out, hr_out = augmentation.batch(
        torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs]), range(4)
    )
    lr_out, hr_out = (x.float() / 255 if x.dtype == torch.uint8 else x for x in (lr_out, hr_out))
    assert hr_out.shape[-1] == 4 * lr_out.shape[-1]
    assert float((downscale(hr_out) - lr_out).abs().max()) < 0.01
    if name != "crop_scale":
        assert float((hr_out - torch.stack([p[1] for p in pairs]).float()).abs().max()) > 0.02 or name == "jitter"


def test_blur_and_cutblur_change_only_the_input():
    hr = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    lr = downscale(hr)
    for name in ("blur", "cutblur"):
        augmentation = Augmentation(AugmentSettings(flip=False, rotate=False, **{name: 1.0}), seed=3, live=True)
        pairs = [augmentation.sample(lr[i], hr[i], 16, i) for i in range(2)]
        lr_out, hr_out = augmentation.batch(
            torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs]), range(2)
        )
        assert torch.equal(hr_out, hr)
        assert not torch.equal(lr_out, lr)


def test_the_eight_orientations_are_different_and_alike_at_both_sizes():
    hr = torch.rand(3, 16, 16)
    lr = downscale(hr[None])[0]
    seen = {dihedral(hr, flip, turns).numpy().tobytes() for flip in (False, True) for turns in range(4)}
    assert len(seen) == 8
    for flip in (False, True):
        for turns in range(4):
            torch.testing.assert_close(downscale(dihedral(hr, flip, turns)[None])[0], dihedral(lr, flip, turns))


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


@given(st.integers(2, 500), st.integers(1, 200), st.none() | st.integers(0, 99))
def test_held_out_images_are_distinct(count, hold_out, seed):
    names = [f"{index}.png" for index in range(count)]
    if hold_out * 2 > count:
        with pytest.raises(Refusal):
            held_out_indices(names, hold_out, seed)
        return
    found = held_out_indices(names, hold_out, seed)
    assert found == sorted(found) == held_out_indices(names, hold_out, seed)
    assert len(set(found)) == hold_out and min(found) >= 0 and max(found) < count


def test_images_are_held_out_evenly_or_by_a_seed():
    names = [f"{index}.png" for index in range(100)]
    assert held_out_indices(names, 4) == [12, 37, 62, 87]
    assert len({tuple(held_out_indices(names, 4, seed)) for seed in range(9)}) == 9
    more = [*names[:50], "new.png", *names[50:]]
    kept = {names[index] for index in held_out_indices(names, 20, 1)}
    assert len(kept & {more[index] for index in held_out_indices(more, 20, 1)}) >= 19


def test_a_folder_holds_out_what_the_seed_says(tmp_path):
    folder = write_pictures(tmp_path / "hr", 12)

    def held(**data):
        shared = {"hr": [str(folder)], "patch": 8, "batch": 2, "hold_out": 3}
        source = FolderSource(expert_settings(folder, tmp_path / "run", data={**shared, **data}))
        return [item for batch in source.held_out() for item in batch.items]

    assert held() == held() != held(hold_out_seed=5) == held(hold_out_seed=5)
