"""The shipped native refiner: its texture differs by seed, vanishes in the mean, and knows no grid of LR pixels."""

from __future__ import annotations

import pytest
import torch
from skimage.data import chelsea
from torch import Tensor

from benchmarks.inference.refinement import parts_of_change
from fusion.refinement.native.open import NativeRefiner, open_native
from fusion.refinement.presets import Blend
from fusion.refinement.refine import refine
from imaging.paths import find_pretrained
from imaging.resize import downscale, resize_bicubic
from tests.refinement.native import change
from tests.refinement.parts import CPU, need_diffusion

need_diffusion()
SHIPPED = find_pretrained("refiner.safetensors")


@pytest.fixture(scope="module")
def shipped() -> NativeRefiner:
    return open_native(str(SHIPPED), CPU)


def scene() -> tuple[Tensor, Tensor]:
    """A cat's fur and, right of it, a smooth gradient: (fused image, LR image), bicubic standing for the fusion."""
    fur_CHW = torch.from_numpy(chelsea()[20:276, 90:346].copy()).permute(2, 0, 1).float() / 255
    smooth_CHW = torch.linspace(0.3, 0.7, 256)[:, None].expand(3, 256, 96)
    lr_CHW = downscale(torch.cat([fur_CHW, smooth_CHW], dim=2)[None])[0].clamp(0, 1)
    return resize_bicubic(lr_CHW[None], scale=4)[0], lr_CHW


def test_another_seed_gives_another_texture(shipped: NativeRefiner) -> None:
    fused_CHW, lr_CHW = scene()
    first, second = (change(shipped, fused_CHW, lr_CHW, seed) for seed in range(2))
    assert _rms(first) > 1
    assert _rms(first - second) > 0.5 * _rms(first)


def test_the_mean_over_seeds_goes_back_to_the_fused_image(shipped: NativeRefiner) -> None:
    fused_CHW, lr_CHW = scene()
    draws = torch.stack([change(shipped, fused_CHW, lr_CHW, seed) for seed in range(16)])
    steps = [_rms(draws[:count].mean(0)) for count in (1, 4, 16)]
    assert steps[0] > steps[1] > steps[2]
    assert steps[2] < 0.7 * steps[0]


def test_flat_parts_stay_flat_and_the_input_is_kept(shipped: NativeRefiner) -> None:
    fused_CHW, lr_CHW = scene()
    found = refine(shipped, fused_CHW, lr_CHW, Blend())
    assert _rms((found.image_CHW - fused_CHW)[..., 272:]) < 1
    assert found.guard["lr_rms"] < found.guard["lr_rms_before"] + 0.3


def test_a_change_does_not_know_where_the_grid_of_lr_pixels_lies(shipped: NativeRefiner) -> None:
    """The image cut at other places: what the mean over seeds differs by is a lattice."""
    fused_CHW, _ = scene()
    side, first = 160, 4
    cuts: list[Tensor] = []
    for shift in range(4):
        cut_CHW = fused_CHW[:, shift : shift + side, shift : shift + side]
        lr_CHW = downscale(cut_CHW[None])[0]
        draws = torch.stack([change(shipped, cut_CHW, lr_CHW, 10 * shift + seed) for seed in range(4)])
        cuts.append(draws[..., first - shift : side - shift, first - shift : side - shift])
    parts = parts_of_change(torch.stack(cuts))
    assert parts["by_grid"] < 0.25 * parts["cut_change"]
    # The same, with a faint lattice that each cut has at its own place.
    lattice = torch.zeros(4, 1, 1, side - first, side - first)
    for shift in range(4):
        lattice[shift, ..., shift::4, shift::4] = 8 / 255
    assert parts_of_change(torch.stack(cuts) + lattice)["by_grid"] > 0.25 * parts["cut_change"]


def test_a_change_is_taken_apart_into_what_it_was_made_of() -> None:
    draw = torch.Generator().manual_seed(0)

    def noise(levels: float, *shape: int) -> Tensor:
        return torch.randn(*shape, 3, 64, 64, generator=draw) * levels / 255

    parts = parts_of_change(noise(3, 1, 1) + noise(2, 4, 1) + noise(4, 4, 4))
    assert parts["common"] == pytest.approx(3, rel=0.05)
    assert parts["by_grid"] == pytest.approx(2, rel=0.05)
    assert parts["by_seed"] == pytest.approx(4, rel=0.05)
    assert parts["cut_change"] == pytest.approx(29**0.5, rel=0.05)


def _rms(change_CHW: Tensor) -> float:
    """In grey levels."""
    return float(change_CHW.square().mean().sqrt()) * 255
