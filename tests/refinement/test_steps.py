"""The steps of refinement, each against an independent reference: diffusers' schedulers and models, SciPy, NumPy."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.fft import dctn

from fusion.refinement.guard import LEVELS, coarse, fix_colour, hold_low_band, low_band, measure
from fusion.refinement.open import open_refiner
from fusion.refinement.presets import PRESETS, Blend, preset_of
from fusion.refinement.refine import blend, count_tiles
from fusion.refinement.step import update_of
from fusion.refinement.tiles import Tiling, run_tiled
from imaging.refusal import Refusal
from imaging.resize import downscale
from tests.refinement.parts import image_of, need_diffusion, save_sd2


def nothing() -> None:
    return


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# One step


def test_flow_update_is_the_schedulers_own(tmp_path: Path) -> None:
    need_diffusion()
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0])
    assert float(scheduler.timesteps[0]) == PRESETS["tsdsr"].timestep
    latent, velocity = noise(1, 16, 8, 9), noise(1, 16, 8, 9, seed=1)
    expected: Any = scheduler.step(velocity, scheduler.timesteps[0], latent).prev_sample
    torch.testing.assert_close(update_of(PRESETS["tsdsr"], tmp_path)(latent, velocity), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddpm_update_is_the_schedulers_own(tmp_path: Path, prediction: str) -> None:
    need_diffusion()
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDPMScheduler(**config, prediction_type=prediction, clip_sample=False)
    scheduler.save_pretrained(tmp_path / "scheduler")
    latent, said = noise(1, 4, 8, 9), noise(1, 4, 8, 9, seed=1)
    expected: Any = scheduler.step(said, 999, latent).pred_original_sample
    found = update_of(PRESETS["sd-onestep"], tmp_path)(latent, said)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_schedules_that_do_not_reach_the_step_are_refused(tmp_path: Path) -> None:
    need_diffusion()
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    DDPMScheduler(num_train_timesteps=500).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(Refusal, match="has 500 steps"):
        update_of(PRESETS["sd-onestep"], tmp_path)


# Tiles


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 300), tile=st.integers(2, 64), share=st.floats(0, 0.9))
def test_tiles_cover_everything_and_stay_inside(length: int, tile: int, share: float) -> None:
    overlap = int(tile * share)
    starts = Tiling(tile, overlap).starts(length)
    covered = np.zeros(length, int)
    for start in starts:
        assert start >= 0
        covered[start : start + tile] += 1
    assert covered.min() >= 1
    assert starts[-1] + tile == length or length <= tile
    assert all(later - earlier <= tile - overlap for earlier, later in pairwise(starts))


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_pointwise_functions_do_not_show_the_tiles(height: int, width: int) -> None:
    x_CHW = noise(3, height, width)
    found = run_tiled(x_CHW, lambda part: part.square() - 1, Tiling(12, 4), tick=nothing)
    torch.testing.assert_close(found, x_CHW.square() - 1, rtol=1e-5, atol=1e-5)


def test_a_single_tile_is_the_function_itself_and_constants_stay() -> None:
    x_CHW = noise(2, 9, 11)

    whole = run_tiled(x_CHW, lambda part: part.cumsum(-1), Tiling(16, 4), tick=nothing)
    torch.testing.assert_close(whole, x_CHW.cumsum(-1))
    flat = run_tiled(torch.zeros(2, 50, 31), lambda part: torch.full_like(part, 0.3), Tiling(16, 4), tick=nothing)
    torch.testing.assert_close(flat, torch.full((2, 50, 31), 0.3))


def test_tiles_shrink_and_enlarge() -> None:
    x_CHW = noise(3, 8 * 21, 8 * 30)
    small = run_tiled(x_CHW, lambda part: torch.nn.functional.avg_pool2d(part, 8), Tiling(10, 3), inner=8, tick=nothing)
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(x_CHW, 8))
    large = run_tiled(
        small,
        lambda part: torch.nn.functional.interpolate(part, scale_factor=8.0),
        Tiling(10, 3),
        outer=8,
        tick=nothing,
    )
    torch.testing.assert_close(large, small.repeat_interleave(8, -1).repeat_interleave(8, -2))


def test_blending_is_gaussian() -> None:
    """Two tiles that answer with their number: what each weighs is a Gaussian of variance 0.01 tile lengths squared."""
    numbers = iter((0.0, 1.0))
    found = run_tiled(
        torch.zeros(1, 8, 12), lambda part: torch.full_like(part, next(numbers)), Tiling(8, 4), tick=nothing
    )
    place = np.arange(4, 8)
    bells = [np.exp(-(((place - start - 3.5) / 8) ** 2) / 0.02) for start in (0, 4)]
    np.testing.assert_allclose(found[0, 3, 4:8].numpy(), bells[1] / (bells[0] + bells[1]), rtol=1e-5)
    assert found[0, 3, :4].eq(0).all()
    assert found[0, 3, 8:].eq(1).all()


def test_tiles_are_counted_as_they_are_run() -> None:
    ticks: list[int] = []
    run_tiled(noise(1, 70, 91), lambda part: part, Tiling(32, 8), tick=lambda: ticks.append(1))
    assert len(ticks) == Tiling(32, 8).count(70, 91)
    # 1100x700 pixels are 138x88 latents: 3x2 tiles of 64 (8 shared) for the model, 3x2 (16 shared) for the VAE, twice.
    assert count_tiles(PRESETS["tsdsr"], 1100, 700) == 6 + 2 * 6


# Colours


def test_coarse_part_is_five_smoothings() -> None:
    x_CHW = image_of(70, 83)
    expected = x_CHW.double().numpy()
    for level in range(LEVELS):
        kernel = np.zeros(2 * 2**level + 1)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        for axis in (1, 2):
            expected = ndimage.correlate1d(expected, kernel, axis=axis, mode="nearest")
    np.testing.assert_allclose(coarse(x_CHW).numpy(), expected, atol=1e-6)


def test_wavelet_takes_the_coarse_part_of_one_and_the_fine_part_of_the_other() -> None:
    refined, original = image_of(40, 52), image_of(40, 52, seed=3) * 0.5 + 0.3
    expected = refined - coarse(refined) + coarse(original)
    torch.testing.assert_close(fix_colour("wavelet", refined, original), expected, rtol=1e-5, atol=1e-6)


def test_adain_takes_mean_and_spread() -> None:
    refined, original = image_of(40, 52), image_of(40, 52, seed=3) * 0.5 + 0.3
    found = fix_colour("adain", refined, original).numpy()
    np.testing.assert_allclose(found.mean((1, 2)), original.numpy().mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(found.std((1, 2)), original.numpy().std((1, 2)), atol=1e-5)
    assert fix_colour("none", refined, original) is refined


# The guard


@settings(max_examples=12, deadline=None)
@given(height=st.integers(8, 150), width=st.integers(8, 150))
def test_the_low_band_is_held_exactly(height: int, width: int) -> None:
    """SciPy's cosine transform: the lowest 1/32 of the refined image's coefficients are the fused image's."""
    refined, fused = noise(3, height, width), noise(3, height, width, seed=1)
    held = hold_low_band(refined, fused)
    rows, columns = max(1, height // 32), max(1, width // 32)
    of_held, of_fused, of_refined = (
        dctn(x.double().numpy(), axes=(1, 2), norm="ortho") for x in (held, fused, refined)
    )
    low = (slice(None), slice(rows), slice(columns))
    np.testing.assert_allclose(of_held[low], of_fused[low], atol=2e-4)
    of_held[low], of_refined[low] = 0, 0
    np.testing.assert_allclose(of_held, of_refined, atol=2e-4)  # and nothing else is touched


def test_wavelet_fix_and_guard_keep_the_low_band_at_any_strength() -> None:
    fused, painted = image_of(130, 170), (image_of(130, 170, seed=9) * 0.7 + 0.2)
    held = hold_low_band(fix_colour("wavelet", painted, fused), fused)
    for strength in (0.3, 1.0):
        image = blend(fused, held, strength)
        assert measure(image, fused, None)["low_band_drift"] < 0.01
    assert measure(painted, fused, None)["low_band_drift"] > 5


def test_what_the_guard_measures() -> None:
    fused, lr = image_of(40, 64), image_of(10, 16, seed=4)
    image = (fused + 0.1 * noise(3, 40, 64)).clamp(0, 1)
    found = measure(image, fused, lr)
    difference = (downscale(image[None])[0] - lr).double().numpy()
    assert found["lr_rms"] == pytest.approx(255 * np.sqrt((difference**2).mean()), abs=1e-3)
    assert found["change_rms"] == pytest.approx(255 * np.sqrt(((image - fused).double().numpy() ** 2).mean()), abs=1e-3)
    assert found["low_band_drift"] == pytest.approx(255 * float(low_band(image - fused).abs().max()), abs=1e-3)
    assert "lr_rms" not in measure(image, fused, None)


def test_the_truth_of_an_lr_file_misses_nothing_of_it() -> None:
    """Black on white: its bicubic reduction is beyond both, where the file is cut off."""
    image = (image_of(40, 64) > 0.5).float()
    reduced = downscale(image[None])[0]
    assert float((reduced - reduced.clamp(0, 1)).abs().max()) > 0.02
    assert measure(image, image, reduced.clamp(0, 1))["lr_rms"] == pytest.approx(0, abs=1e-3)


def test_blend_meets_both_ends_bit_for_bit() -> None:
    fused, painted = noise(3, 20, 30), noise(3, 20, 30, seed=1)
    assert blend(fused, painted, 0.0).equal(fused)
    assert blend(fused, painted, 1.0).equal(painted)
    torch.testing.assert_close(blend(fused, painted, 0.25), 0.75 * fused + 0.25 * painted)


# What may be asked for


@pytest.mark.parametrize("bad", [{"strength": 1.5}, {"strength": float("nan")}, {"colour": "wavlet"}, {"seed": -1}])
def test_invalid_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        Blend(**bad)


def test_unknown_presets_are_refused_with_the_nearest() -> None:
    with pytest.raises(Refusal, match="did you mean 'tsdsr'"):
        preset_of("tsdrs")


@pytest.mark.parametrize("name", ["diffusers", "peft"])
def test_a_missing_extra_is_refused_with_the_cure(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    need_diffusion()
    monkeypatch.setitem(sys.modules, name, None)  # importing it now fails as if it were not installed
    with pytest.raises(Refusal, match=rf"needs {name}; pip install 'championship-sr\[diffusion\]'"):
        open_refiner("tsdsr", str(tmp_path), None, torch.device("cpu"))


def test_presets_are_what_diffusers_calls_them(tmp_path: Path) -> None:
    """The data, checked against the classes themselves: names, entries of the config, the arguments of a call."""
    need_diffusion()
    import inspect

    import diffusers

    for preset in PRESETS.values():
        kind = getattr(diffusers, preset.model_class)
        config, call = inspect.signature(kind.__init__).parameters, inspect.signature(kind.forward).parameters
        for argument, condition in preset.conditions.items():
            assert argument in call
            assert condition.width in config
    assert (save_sd2(tmp_path) / "unet" / "config.json").is_file()
