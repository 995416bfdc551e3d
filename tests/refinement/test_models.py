"""Refiners opened from tiny folders that diffusers wrote: the chain against diffusers' own parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.refinement.open import precision_on
from fusion.refinement.presets import Blend
from fusion.refinement.refine import count_tiles, refine, repaint
from imaging.refusal import Refusal
from tests.refinement.parts import (
    CPU,
    FOLDERS,
    image_of,
    need_diffusion,
    opened,
)

need_diffusion()


@torch.no_grad()
def by_diffusers(folder: Path, preset: str, image_CHW: torch.Tensor, seed: int | None = None) -> torch.Tensor:
    """The chain written out with diffusers' own loaders, posterior and schedulers."""
    import diffusers

    vae: Any = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    posterior = vae.encode(image_CHW[None] * 2 - 1).latent_dist
    drawn = posterior.mode() if seed is None else posterior.sample(torch.Generator().manual_seed(seed))
    latent = drawn * vae.config.scaling_factor
    if preset == "tsdsr":
        model: Any = diffusers.SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
        scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(sigmas=[1.0])
        velocity = model(
            hidden_states=latent,
            timestep=scheduler.timesteps,
            encoder_hidden_states=torch.load(folder / "prompt_embeds.pt")[None],
            pooled_projections=torch.load(folder / "pool_embeds.pt")[None],
        ).sample
        clean = scheduler.step(velocity, scheduler.timesteps[0], latent).prev_sample
    else:
        from transformers import CLIPTextModel, CLIPTokenizer

        model = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        tokens: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer")("", padding="max_length", return_tensors="pt")
        told = CLIPTextModel.from_pretrained(folder / "text_encoder")(tokens.input_ids).last_hidden_state
        clean = scheduler.step(model(latent, 999, told).sample, 999, latent).pred_original_sample
    return (vae.decode(clean / vae.config.scaling_factor).sample[0] / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("preset", FOLDERS)
@pytest.mark.parametrize("seed", [None, 7])
def test_one_tile_is_what_diffusers_makes(bases: Path, preset: str, seed: int | None) -> None:
    image_CHW = image_of(64, 80)
    found = repaint(opened(bases, preset), image_CHW, "none", seed)
    torch.testing.assert_close(found, by_diffusers(bases / FOLDERS[preset], preset, image_CHW, seed), rtol=0, atol=2e-5)


@pytest.mark.parametrize("preset", FOLDERS)
def test_seeds_repeat_and_differ(bases: Path, preset: str) -> None:
    refiner, image_CHW = opened(bases, preset), image_of(33, 47)
    first, again, other, mode = (repaint(refiner, image_CHW, "wavelet", seed) for seed in (1, 1, 2, None))
    assert first.equal(again)
    assert not first.equal(other)
    assert not first.equal(mode)
    assert mode.equal(repaint(refiner, image_CHW, "wavelet"))


@pytest.mark.parametrize("preset", FOLDERS)
def test_any_size(bases: Path, preset: str) -> None:
    refiner = opened(bases, preset)
    for size, colour in ((17, 23), "wavelet"), ((1, 1), "adain"), ((16, 16), "none"), ((31, 130), "wavelet"):
        image_CHW = image_of(*size)
        refined = refine(refiner, image_CHW, None, Blend(colour=colour))
        assert refined.image_CHW.shape == image_CHW.shape
        assert refined.image_CHW.isfinite().all()
        assert refined.guard["change_rms"] > 0 or size == (1, 1)


def test_strength_zero_is_the_fused_image_bit_for_bit_and_runs_no_model(bases: Path) -> None:
    fused_CHW = image_of(40, 52) * 1.4 - 0.2  # overshoots are kept too
    refined = refine(replace(opened(bases, "tsdsr"), model=None, vae=None), fused_CHW, None, Blend(strength=0.0))
    assert refined.image_CHW.equal(fused_CHW)


def test_the_device_sees_no_more_of_a_larger_image(bases: Path) -> None:
    refiner = opened(bases, "tsdsr")
    refiner = replace(refiner, preset=replace(refiner.preset, tile=16, overlap=4, vae_tile=12, vae_overlap=4))
    seen: dict[str, set[tuple[int, ...]]] = {"model": set(), "encoder": set(), "decoder": set()}
    parts = {"model": refiner.model.pos_embed, "encoder": refiner.vae.encoder, "decoder": refiner.vae.decoder}
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda _m, inputs, name=name: seen[name].add(tuple(inputs[0].shape)) or None)
    ticks: list[tuple[int, int]] = []
    repaint(refiner, image_of(140, 260), "wavelet", tick=lambda *now: ticks.append(now))
    assert seen == {"model": {(1, 16, 16, 16)}, "encoder": {(1, 3, 96, 96)}, "decoder": {(1, 16, 12, 12)}}
    total = count_tiles(refiner.preset, 140, 260)
    assert ticks == [(done, total) for done in range(1, total + 1)]


def test_cancelling_passes_through(bases: Path) -> None:
    class Cancelled(Exception):  # noqa: N818 - not an error
        pass

    def tick(done: int, _total: int) -> None:
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        repaint(opened(bases, "tsdsr"), image_of(32, 32), "none", tick=tick)


def test_out_of_memory_goes_on_in_smaller_tiles_and_warns(bases: Path) -> None:
    refiner, warnings = opened(bases, "tsdsr"), list[str]()

    def full(_module: Any, inputs: Any) -> None:
        if inputs[0].shape[-1] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")

    refiner.model.pos_embed.register_forward_pre_hook(full)
    assert repaint(refiner, image_of(300, 330), "none", warn=warnings.append).shape == (3, 300, 330)
    assert warnings == ["the diffusion model: out of memory at tiles of 64 latents; went on with tiles of 32"]
    refiner.model.pos_embed.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(Refusal, match="out of memory even in tiles of 16"):
        repaint(refiner, image_of(300, 330), "none", warn=warnings.append)


def test_overflow_is_refused(bases: Path) -> None:
    refiner = opened(bases, "sd-onestep")
    refiner.model.conv_out.bias.fill_(float("nan"))
    with pytest.raises(Refusal, match="the diffusion model: gave NaN"):
        repaint(refiner, image_of(32, 32), "none")


def test_precision_follows_the_device(monkeypatch: Any) -> None:
    assert precision_on(CPU) == torch.float32
    for supported, kind in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert precision_on(torch.device("cuda")) == kind


@pytest.mark.parametrize("preset", FOLDERS)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precisions_make_nearly_the_same(bases: Path, preset: str, kind: torch.dtype, monkeypatch: Any) -> None:
    """As on a GPU, though computed on the CPU: every tensor meets its part in the right type."""
    exact = opened(bases, preset)
    monkeypatch.setattr("fusion.refinement.open.precision_on", lambda _device: kind)
    half, image_CHW = opened(bases, preset), image_of(32, 48)
    assert half.model.dtype == kind
    assert half.vae.dtype == (torch.float32 if kind == torch.float16 else kind)  # these VAEs ask for it
    assert half.identity["precision"] == str(kind).removeprefix("torch.")
    found, expected = (repaint(one, image_CHW, "wavelet") for one in (half, exact))
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.03
