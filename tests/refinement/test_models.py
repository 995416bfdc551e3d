"""Refiners opened from tiny folders that diffusers wrote: the chain against diffusers' own parts, LoRA, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion.refinement.open import Refiner, open_refiner, precision_on
from fusion.refinement.presets import Blend
from fusion.refinement.refine import count_tiles, refine, repaint
from imaging.refusal import Refusal
from tests.refinement.parts import (
    WIDTH,
    add_lora,
    image_of,
    lora_tensors,
    make_vae,
    need_diffusion,
    save_lora,
    save_sd2,
    save_sd3,
)

need_diffusion()
CPU = torch.device("cpu")
FOLDERS = {"tsdsr": "sd3", "sd-onestep": "sd2"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd3/ and sd2/."""
    folder = tmp_path_factory.mktemp("bases")
    save_sd3(folder / "sd3")
    save_sd2(folder / "sd2")
    return folder


@pytest.fixture
def sd3(bases: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(bases / "sd3", tmp_path / "sd3"))


def opened(bases: Path, preset: str, lora: Path | None = None) -> Refiner:
    return open_refiner(preset, str(bases / FOLDERS[preset]), lora, CPU)


def refusal_of(base: Path, lora: Path | None = None, preset: str = "tsdsr") -> str:
    with pytest.raises(Refusal) as caught:
        open_refiner(preset, str(base), lora, CPU)
    line = str(caught.value)
    assert "\n" not in line
    return line


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


# LoRA

LAYERS = {
    "tsdsr": (
        ["to_k", "to_q", "to_out.0", "linear", "proj_out"],
        ["encoder.conv_in", "encoder.mid_block.attentions.0.to_q"],
    ),
    "sd-onestep": (["to_k", "to_q", "conv_in", "ff.net.0.proj"], ["encoder.conv_in", "quant_conv"]),
}
FILES = {"tsdsr": ("transformer", "transformer", "transformer"), "sd-onestep": ("unet", "unet", "vae")}


def unfused(bases: Path, preset: str, alpha: int | None = None) -> Refiner:
    """The refiner with peft's own layers in its parts."""
    refiner = opened(bases, preset)
    for part, layers in zip((refiner.model, refiner.vae), LAYERS[preset], strict=True):
        add_lora(part, layers, alpha=alpha)
    return refiner


@pytest.mark.parametrize("preset", FOLDERS)
def test_fused_lora_equals_the_unfused(bases: Path, tmp_path: Path, preset: str) -> None:
    file, prefix, vae_prefix = FILES[preset]
    reference = unfused(bases, preset, alpha=2)
    save_lora(tmp_path, f"{file}.safetensors", lora_tensors(reference.model), prefix)
    save_lora(tmp_path, "vae.safetensors", lora_tensors(reference.vae), vae_prefix)
    fused, plain, image_CHW = opened(bases, preset, tmp_path), opened(bases, preset), image_of(48, 64)
    assert not any("lora" in name for part in (fused.model, fused.vae) for name, _ in part.named_modules())
    found, expected, without = (repaint(one, image_CHW, "none") for one in (fused, reference, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - without).abs().max() > 1e-2
    assert fused.identity["lora"].keys() == {f"{file}.safetensors", "vae.safetensors"}
    assert {**fused.identity, "lora": {}} == plain.identity


def test_an_alpha_in_the_files_header_counts(bases: Path, tmp_path: Path) -> None:
    """What diffusers' `save_lora_adapter` writes: no prefix, and peft's settings in the header."""
    reference = unfused(bases, "tsdsr", alpha=6)
    for part, name in ((reference.model, "transformer"), (reference.vae, "vae")):
        part.save_lora_adapter(tmp_path, weight_name=f"{name}.safetensors")
    image_CHW = image_of(48, 64)
    found = repaint(opened(bases, "tsdsr", tmp_path), image_CHW, "none")
    torch.testing.assert_close(found, repaint(reference, image_CHW, "none"), rtol=0, atol=1e-4)


def test_osediffs_own_file(bases: Path, tmp_path: Path) -> None:
    """Its layout (osediff.py of its repository): three adapters on the UNet, peft's own alpha of 8, conv_in whole."""
    reference = opened(bases, "sd-onestep")
    groups = {"encoder": ["down_blocks.0.attentions.0.proj_in"], "decoder": ["to_k"], "others": ["conv_in"]}
    for name, layers in groups.items():
        layers = [*layers] if name != "decoder" else ["up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"]
        add_lora(reference.model, layers, rank=4, name=f"default_{name}")
    reference.model.set_adapter([f"default_{name}" for name in groups])
    add_lora(reference.vae, ["encoder.conv_in"], rank=4, name="default_encoder")
    with torch.no_grad():
        reference.model.conv_in.base_layer.bias.add_(0.1)
    kept = {key: value for key, value in reference.model.state_dict().items() if "lora" in key or "conv_in" in key}
    document = {
        "rank_unet": 4,
        "rank_vae": 4,
        "unet_lora_encoder_modules": groups["encoder"],
        "state_dict_unet": kept,
        "state_dict_vae": {key: value for key, value in reference.vae.state_dict().items() if "lora" in key},
    }
    torch.save(document, tmp_path / "osediff.pkl")
    image_CHW = image_of(48, 64)
    found = repaint(opened(bases, "sd-onestep", tmp_path), image_CHW, "none")
    torch.testing.assert_close(found, repaint(reference, image_CHW, "none"), rtol=0, atol=1e-4)
    assert (found - repaint(opened(bases, "sd-onestep"), image_CHW, "none")).abs().max() > 1e-2


def test_loras_that_do_not_fit_are_refused(bases: Path, tmp_path: Path) -> None:
    reference = unfused(bases, "tsdsr")
    good = {"transformer": lora_tensors(reference.model), "vae": lora_tensors(reference.vae)}

    def said(**changed: dict[str, torch.Tensor]) -> str:
        for name, tensors in (good | changed).items():
            save_lora(tmp_path, f"{name}.safetensors", tensors, "transformer")
        return refusal_of(bases / "sd3", tmp_path)

    model = good["transformer"]
    first = sorted(key for key in model if "lora_A" in key)[0]
    assert "is no layer of the SD3Transformer2DModel" in said(transformer={"blocks.9.to_q.lora_A.weight": model[first]})
    wide = {**model, first: torch.zeros(2, 999)}
    assert "do not fit" in said(transformer=wide)
    assert "None" in said(transformer={key: value for key, value in model.items() if key != first})
    assert "no LoRA key" in said(transformer={**model, "proj_out.alpha": torch.ones(1)})
    assert "is no layer of the AutoencoderKL" in said(vae=model)
    (tmp_path / "vae.safetensors").write_bytes(b"nothing")
    assert "cannot be read" in refusal_of(bases / "sd3", tmp_path)
    (tmp_path / "vae.safetensors").unlink()
    assert "lacks vae.safetensors; see https://github.com/Microtreei/TSD-SR" in refusal_of(bases / "sd3", tmp_path)
    assert "no such folder" in refusal_of(bases / "sd3", tmp_path / "nowhere")


# What is missing or wrong


def test_missing_files_are_named_all_at_once(sd3: Path) -> None:
    (sd3 / "vae" / "config.json").unlink()
    (sd3 / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    line = refusal_of(sd3)
    assert "lacks vae/config.json, transformer/diffusion_pytorch_model.safetensors" in line
    assert "stable-diffusion-3-medium" in line


def test_wrong_channels_scale_and_class_are_refused(sd3: Path, tmp_path: Path, bases: Path) -> None:
    assert "in_channels is 4, 16 is needed" in refusal_of(save_sd3(tmp_path / "narrow", channels=4))
    make_vae(4, 1.5305).save_pretrained(sd3 / "vae")
    assert "latent_channels is 4, 16 is needed" in refusal_of(sd3)
    make_vae(16, 0.13).save_pretrained(sd3 / "vae")
    assert "scaling_factor is 0.13, 1.5305 is needed" in refusal_of(sd3)
    assert "lacks transformer/config.json" in refusal_of(bases / "sd2")
    shutil.copytree(bases / "sd2" / "unet", sd3 / "transformer", dirs_exist_ok=True)
    assert "_class_name is UNet2DConditionModel, SD3Transformer2DModel is needed" in refusal_of(sd3)


def test_prompt_tensors_are_checked(sd3: Path) -> None:
    torch.save(torch.zeros(5, WIDTH + 1), sd3 / "prompt_embeds.pt")
    assert f"is (5, {WIDTH + 1}), 2 axes are needed of which the last is {WIDTH}" in refusal_of(sd3)
    torch.save([1, 2], sd3 / "prompt_embeds.pt")
    assert "holds a list" in refusal_of(sd3)
    (sd3 / "prompt_embeds.pt").write_bytes(b"no pickle")
    assert "prompt_embeds.pt" in refusal_of(sd3)
    for name in ("prompt_embeds.pt", "pool_embeds.pt"):
        (sd3 / name).unlink()
    assert "lacks prompt_embeds.pt and pool_embeds.pt; put what https://github.com/Microtreei" in refusal_of(sd3)


def test_prompt_tensors_may_replace_the_text_encoder(bases: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases / "sd2", tmp_path / "sd2"))
    shutil.rmtree(folder / "text_encoder")
    assert "text_encoder" in refusal_of(folder, preset="sd-onestep")
    told = opened(bases, "sd-onestep").conditions["encoder_hidden_states"]
    save_file({"anything": told[0].contiguous()}, folder / "prompt_embeds.safetensors")
    refiner = open_refiner("sd-onestep", str(folder), None, CPU)
    assert refiner.conditions["encoder_hidden_states"].equal(told)
    assert refiner.identity["conditions"].keys() == {"prompt_embeds.safetensors"}


def test_damaged_and_incomplete_weights_are_refused(sd3: Path) -> None:
    path = sd3 / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({key: value for key, value in tensors.items() if key != "decoder.conv_out.bias"}, path)
    assert "disagree on decoder.conv_out.bias" in refusal_of(sd3)  # diffusers would fill it with random numbers
    save_file({**tensors, "foreign": torch.zeros(1)}, path)
    assert "disagree on foreign" in refusal_of(sd3)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot be loaded" in refusal_of(sd3)
    (sd3 / "vae" / "config.json").write_text("{")
    assert "cannot be read" in refusal_of(sd3)


@pytest.mark.parametrize("how", [{"max_shard_size": "100KB"}, {"variant": "fp16"}])
def test_shards_and_variants_load_alike(sd3: Path, bases: Path, how: dict[str, Any]) -> None:
    plain = opened(bases, "tsdsr")
    folder = sd3 / "transformer"
    shutil.rmtree(folder)
    plain.model.save_pretrained(folder, **how)
    refiner = open_refiner("tsdsr", str(sd3), None, CPU)
    image_CHW = image_of(32, 32)
    # Not bit for bit: tensors that lie differently in memory may be summed in another order.
    torch.testing.assert_close(
        repaint(refiner, image_CHW, "none"), repaint(plain, image_CHW, "none"), rtol=0, atol=2e-5
    )
    assert len(refiner.identity["base"]) >= 4
    if "max_shard_size" in how:
        sorted(folder.glob("*-00002-*"))[0].unlink()
        assert "this shard is missing" in refusal_of(sd3)


def test_ids_that_cannot_be_had_are_refused(monkeypatch: Any) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/x"))

    def fails(error: Exception) -> str:
        def snapshot(*_a: Any, **_k: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        with pytest.raises(Refusal) as caught:
            open_refiner("tsdsr", "someone/base", None, CPU)
        return str(caught.value)

    assert "is gated; accept its licence on its page" in fails(errors.GatedRepoError("403", response=response))
    assert "no such Hub id" in fails(errors.RepositoryNotFoundError("404", response=response))
    assert "accept its licence" in fails(errors.LocalEntryNotFoundError("offline"))
    assert "cannot be fetched (connection reset)" in fails(OSError("connection reset"))
    with pytest.raises(Refusal, match="no such folder, and no Hub id"):
        open_refiner("tsdsr", "/nowhere/at/all", None, CPU)


def test_what_is_fetched_is_what_is_read(bases: Path, monkeypatch: Any) -> None:
    """Of a Hub id only the files that are used are asked for, and the fetched folder opens like a local one."""
    from fnmatch import fnmatch

    import huggingface_hub

    asked: dict[str, Any] = {}

    def snapshot(model: str, **how: Any) -> str:
        asked.update(how, model=model)
        return str(bases / "sd2")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    refiner = open_refiner("sd-onestep", "owner/base", None, CPU)
    assert asked["model"] == "owner/base"
    used = [*refiner.identity["base"], *refiner.identity["conditions"]]
    assert all(any(fnmatch(name, pattern) for pattern in asked["allow_patterns"]) for name in used)
    assert not any(fnmatch("model_index.json", pattern) for pattern in asked["allow_patterns"])
    assert json.dumps(refiner.identity)
