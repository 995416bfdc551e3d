"""The native refiner: a local network, noise by place, changes that the LR image does not see, one step of a flow."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea
from torch import Tensor, nn

import infer
from benchmarks.inference.refinement import parts_of_change
from fusion.inference.report.provenance import read_manifest
from fusion.refinement.native.consistency import unseen
from fusion.refinement.native.flatness import allowance
from fusion.refinement.native.network import ARCHITECTURE, PACKED, NativeRefinerNetwork
from fusion.refinement.native.noise import noise_at
from fusion.refinement.native.open import NativeRefiner, open_native
from fusion.refinement.native.run import change_of, count_native_tiles
from fusion.refinement.native.textures import make_grains
from fusion.refinement.presets import Blend
from fusion.refinement.refine import refine
from fusion.studio import serve
from fusion.studio.jobs.ensemble_cache import RefinerSettings
from fusion.studio.jobs.progress import EnsembleProgress
from fusion.training.loop.export import export_weights
from imaging.command import DONE, FAILURES_LISTED, REFUSED, run
from imaging.paths import find_pretrained
from imaging.refusal import Refusal
from imaging.resize import downscale, resize_bicubic
from tests.inference.parts import photo, pixels, weights_file
from tests.refinement.parts import need_diffusion

need_diffusion()
CPU = torch.device("cpu")
SHIPPED = find_pretrained("refiner.safetensors")


def small_file(path: Path, *, widths: tuple[int, ...] = (8, 16), architecture: str = ARCHITECTURE) -> Path:
    """A file as training writes it, with random weights, also in the last layer."""
    torch.manual_seed(0)
    network = NativeRefinerNetwork(widths)
    nn.init.normal_(network.unet.conv_out.weight, std=0.03)
    draw_at_random(network, 0.1)
    settings = {"widths": list(widths)}
    export_weights(path, network.state_dict(), architecture=architecture, hyperparameters=settings, provenance={})
    return path


def draw_at_random(network: NativeRefinerNetwork, std: float) -> None:
    """Its convolutions at full size begin with a last layer of zeros, beside which no other of them is seen."""
    last = network.textures.draw[-1]
    assert isinstance(last, nn.Conv2d)
    nn.init.normal_(last.weight, std=std)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> NativeRefiner:
    return open_native(str(small_file(tmp_path_factory.mktemp("native") / "small.safetensors")), CPU)


def pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A fused image and its LR image."""
    fused_CHW = torch.from_numpy(photo(4 * height, 4 * width, seed=7)).permute(2, 0, 1).float() / 255
    return fused_CHW, downscale(fused_CHW[None])[0]


def change(refiner: NativeRefiner, fused_CHW: Tensor, lr_CHW: Tensor, seed: int = 3) -> Tensor:
    return change_of(refiner, fused_CHW, lr_CHW, seed, lambda: None, lambda _: None)


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


# Files


def test_files_that_are_no_refiner_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal, match="holds MSG, not NativeRefiner"):
        open_native(str(small_file(tmp_path / "a.safetensors", architecture="MSG")), CPU)
    with pytest.raises(Refusal, match="no such file"):
        open_native(str(tmp_path / "b.safetensors"), CPU)
    with pytest.raises(Refusal, match="is a folder, not a refiner's file"):
        open_native(str(tmp_path), CPU)
    network = NativeRefinerNetwork((8, 16))
    for name, settings, said in (("c", {"widths": [8, 8]}, "does not fit"), ("d", {"widths": 8}, "cannot be built")):
        path = tmp_path / f"{name}.safetensors"
        weights = network.state_dict()
        export_weights(path, weights, architecture=ARCHITECTURE, hyperparameters=settings, provenance={})
        with pytest.raises(Refusal, match=said):
            open_native(str(path), CPU)
    monkeypatch.setattr("fusion.refinement.native.open.find_pretrained", lambda _: None)
    with pytest.raises(Refusal, match=r"weights are missing.*configs/refiner\.yaml"):
        open_native(None, CPU)


# The command


def test_the_command_its_record_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = small_file(tmp_path / "small.safetensors")
    (tmp_path / "lr").mkdir()
    photo_file = tmp_path / "lr" / "a.png"
    Image.fromarray(photo(30, 41, seed=1)).save(photo_file)
    plain = ["--model", str(weights_file(tmp_path)), "--device", "cpu", "-i", str(photo_file)]
    native = [*plain, "--refine", "native", "--refine-model", str(file)]

    def call(name: str, *words: str, base: list[str] = native) -> np.ndarray:
        assert run(infer.command_line, [*base, "-o", str(tmp_path / name), *words]) == DONE
        return pixels(tmp_path / name / "a.png")

    fused, first = call("fused", base=plain), call("first", "--report", "--json")
    document = json.loads(capsys.readouterr().out)
    np.testing.assert_array_equal(call("zero", "--refine-strength", "0"), fused)
    np.testing.assert_array_equal(call("again", "--refine-seed", "0"), first)
    assert (call("other", "--refine-seed", "1") != first).any()
    assert document["refined"]["a"]["change_rms"] > 1
    assert 'alt="refined"' in (tmp_path / "first" / "report.html").read_text()
    manifest = read_manifest(tmp_path / "first" / "a.png")
    assert manifest["options"]["refine"] == {"strength": 1.0, "colour": "wavelet", "seed": 0}
    assert manifest["refine"]["weights"].keys() == {"small.safetensors"}
    for seed, code in (("0", DONE), ("1", FAILURES_LISTED)):
        words = [*native, "--refine-seed", seed, "--verify", str(tmp_path / "first" / "a.png")]
        assert run(infer.command_line, words) == code
    assert run(infer.command_line, [*native, "-o", str(tmp_path / "dry"), "--dry-run"]) == DONE
    assert run(infer.command_line, [*native, "-o", str(tmp_path / "dry"), "--refine-lora", "x"]) == REFUSED


def test_without_the_extra_the_refusal_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    for module in ("fusion.refinement.open", "fusion.refinement.native.network"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == "diffusers" else known(name))
    from fusion.refinement.open import open_refiner

    for attempt in (lambda: open_refiner("native", None, None, CPU), NativeRefinerNetwork):
        with pytest.raises(Refusal, match=r"championship-sr\[diffusion\]"):
            attempt()


# The shipped weights


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
