"""LoRA files: fused they equal peft's own layers, and those that do not fit are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fusion.refinement.open import Refiner
from fusion.refinement.refine import repaint
from tests.refinement.parts import (
    FOLDERS,
    add_lora,
    image_of,
    lora_tensors,
    need_diffusion,
    opened,
    refusal_of,
    save_lora,
)

need_diffusion()


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
