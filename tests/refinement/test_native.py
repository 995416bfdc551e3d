"""The native refiner: a local network, noise by place, changes that the LR image does not see, one step of a flow."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusion.refinement.native.consistency import unseen
from fusion.refinement.native.flatness import allowance
from fusion.refinement.native.network import PACKED, NativeRefinerNetwork
from fusion.refinement.native.noise import noise_at
from fusion.refinement.native.open import NativeRefiner, open_native
from fusion.refinement.native.run import change_of, count_native_tiles
from fusion.refinement.native.textures import make_grains
from fusion.refinement.presets import Blend
from fusion.refinement.refine import refine
from fusion.studio import serve
from fusion.studio.jobs.ensemble_cache import RefinerSettings
from fusion.studio.jobs.progress import EnsembleProgress
from imaging.resize import downscale
from tests.inference.parts import photo
from tests.refinement.native import change, draw_at_random, small_file
from tests.refinement.parts import CPU, need_diffusion

need_diffusion()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> NativeRefiner:
    return open_native(str(small_file(tmp_path_factory.mktemp("native") / "small.safetensors")), CPU)


def pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A fused image and its LR image."""
    fused_CHW = torch.from_numpy(photo(4 * height, 4 * width, seed=7)).permute(2, 0, 1).float() / 255
    return fused_CHW, downscale(fused_CHW[None])[0]


# The network


def test_it_is_small_and_begins_as_the_fused_image() -> None:
    network = NativeRefinerNetwork()
    assert sum(one.numel() for one in network.parameters()) < 3_000_000
    answer = network(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 8), torch.randn(1, PACKED, 8, 8))
    assert torch.equal(answer, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("widths", [(8, 16), (8, 8, 16)])
def test_an_output_pixel_sees_no_further_than_reach(widths: tuple[int, ...]) -> None:
    network = NativeRefinerNetwork(widths)
    nn.init.normal_(network.unet.conv_out.weight)
    draw_at_random(network, 1.0)
    middle, side = network.reach + network.multiple, 2 * network.reach + 3 * network.multiple
    noise = torch.randn(1, PACKED, side, side, requires_grad=True)
    answer = network(torch.rand(1, 3, 4 * side, 4 * side), torch.rand(1, 3, side, side), noise)
    answer[..., 4 * middle, 4 * middle].sum().backward()
    assert noise.grad is not None
    seen = noise.grad[0].abs().sum(0).nonzero()
    assert middle - int(seen.min()) <= network.reach
    assert int(seen.max()) - middle <= network.reach
    assert int(seen.max()) - int(seen.min()) > network.reach  # and the margin is no waste


def test_grains_are_alike_in_every_direction() -> None:
    """Their power at one frequency, along an axis and along a diagonal, of all rings together; none changes a mean."""
    grains = make_grains()
    assert grains.sum((2, 3)).abs().max() < 1e-6
    torch.testing.assert_close(grains.square().sum((1, 2, 3)), torch.ones(len(grains)))
    power = torch.fft.fft2(grains.sum(1), s=(200, 200)).abs().square().sum(0)
    for place in range(30, 75, 5):
        slant = round(place / 2**0.5)
        assert float(power[slant, slant]) == pytest.approx(float(power[0, place]), rel=0.2)


def test_one_euler_step_of_diffusers_scheduler_is_the_prediction() -> None:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    network = NativeRefinerNetwork((8, 16))
    nn.init.normal_(network.unet.conv_out.weight)
    noise = torch.randn(1, PACKED, 8, 8)
    predicted = network(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 8), noise)
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0])
    ends = scheduler.step(network.velocity(predicted, noise), scheduler.timesteps[0], noise, return_dict=False)[0]
    torch.testing.assert_close(nn.functional.pixel_shuffle(ends, 4) * network.spread, predicted, rtol=1e-4, atol=1e-5)


# Noise, tiles, consistency


def test_noise_belongs_to_a_place() -> None:
    whole = noise_at(5, 0, 0, 70, 50)
    assert torch.equal(noise_at(5, 31, 7, 35, 40), whole[:, 31:66, 7:47])
    assert not torch.equal(noise_at(6, 0, 0, 70, 50), whole)
    assert float(whole.mean()) == pytest.approx(0, abs=0.01)
    assert float(whole.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("height", "width"), [(117, 151), (96, 200)])
def test_tiles_equal_the_whole(small: NativeRefiner, height: int, width: int) -> None:
    fused_CHW, lr_CHW = pair(height, width)
    tiled = replace(small, preset=replace(small.preset, tile=80))
    assert (
        count_native_tiles(tiled.preset, 4 * height, 4 * width)
        > 4
        > 1
        == count_native_tiles(small.preset, 4 * height, 4 * width)
    )
    whole_CHW = change(small, fused_CHW, lr_CHW)
    torch.testing.assert_close(change(tiled, fused_CHW, lr_CHW), whole_CHW, rtol=0, atol=2e-6)
    assert float(whole_CHW.abs().max()) > 0.05


def test_the_lr_image_does_not_see_a_change() -> None:
    noise = torch.rand(2, 3, 4 * 19, 4 * 23)
    assert float(downscale(unseen(noise)).abs().max()) < 1e-6
    assert torch.allclose(unseen(unseen(noise)), unseen(noise), atol=1e-6)
    assert float(unseen(noise).std()) > 0.8 * float(noise.std())  # most of noise lies above what LR holds


def test_every_strength_keeps_to_the_input(small: NativeRefiner) -> None:
    fused_CHW, lr_CHW = pair(31, 22)
    for strength in (0.0, 0.5, 1.0):
        found = refine(small, fused_CHW * 0.5 + 0.25, lr_CHW * 0.5 + 0.25, Blend(strength))
        assert found.guard["lr_rms"] == pytest.approx(found.guard["lr_rms_before"], abs=0.2)
        assert found.guard["low_band_drift"] < 0.01
        assert (found.guard["change_rms"] > 1) == (strength > 0)


def test_sides_that_are_no_multiples_of_four_and_no_lr_image(small: NativeRefiner) -> None:
    fused_CHW = pair(10, 13)[0][:, :38, :51]
    assert refine(small, fused_CHW, None, Blend()).image_CHW.shape == fused_CHW.shape


def test_out_of_memory_halves_the_tiles(small: NativeRefiner) -> None:
    class Forgetful(nn.Module):
        def forward(self, fused_BCHW: Tensor, lr_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
            if lr_BCHW.shape[-1] > 128:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return small.model(fused_BCHW, lr_BCHW, noise_BCHW)

    fused_CHW, lr_CHW = pair(66, 160)
    events: list[str] = []
    poor = replace(small, model=Forgetful())
    found = change_of(poor, fused_CHW, lr_CHW, 3, lambda: None, events.append)
    torch.testing.assert_close(found, change(small, fused_CHW, lr_CHW), rtol=0, atol=2e-6)
    assert events == ["the native refiner: out of memory at tiles of 256 LR pixels; went on with tiles of 128"]


# The studio


def test_the_studio_opens_it_by_name_and_counts_its_tiles(small: NativeRefiner) -> None:
    words = Namespace(refine="native", refine_model=None, refine_lora=None)
    assert serve.refiner_settings(words) == RefinerSettings("native", None, None)
    fused_CHW, lr_CHW = pair(40, 30)
    progress = EnsembleProgress(("a",), CPU, lambda: None)
    progress.begin(1, count_native_tiles(small.preset, 160, 120))
    timed = progress.wrap_refiner(small)
    assert isinstance(timed, NativeRefiner)
    assert torch.equal(change(timed, fused_CHW, lr_CHW), change(small, fused_CHW, lr_CHW))
    assert (progress.stages["refinement"].done, progress.stages["refinement"].expected) == (1, 1)


def test_nothing_is_added_where_the_fused_image_is_flat() -> None:
    slope = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float(allowance(slope)[..., 8:-8].max()) < 0.01
    assert float(allowance(slope + noise * 0.02).min()) > 0.7
