"""Tiny random diffusion models in the folder layout of the real ones, made by diffusers itself; and LoRAs by peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fusion.refinement.open import Refiner, open_refiner
from fusion.refinement.presets import PRESETS
from imaging.refusal import Refusal
from tests.inference.parts import photo

CPU = torch.device("cpu")
FOLDERS = {"tsdsr": "sd3", "sd-onestep": "sd2"}
TOKENS, WIDTH, POOLED = 7, 32, 64  # of the prompt tensors


def need_diffusion() -> None:
    """Skip a module whose subject is not installed."""
    for name in ("diffusers", "peft", "transformers"):
        pytest.importorskip(name, reason=f"the extra 'diffusion' is not installed ({name})")


def make_vae(latent_channels: int, scale: float, seed: int = 0, **more: Any) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        scaling_factor=scale,
        **more,
    )


def save_sd3(folder: Path, *, channels: int = 16, scale: float | None = None) -> Path:
    """A folder as SD3-medium's, with the two tensors that TSD-SR ships."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    torch.manual_seed(1)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=96,
    )
    transformer.save_pretrained(folder / "transformer")
    vae = make_vae(
        channels, PRESETS["tsdsr"].scale if scale is None else scale, use_quant_conv=False, use_post_quant_conv=False
    )
    vae.save_pretrained(folder / "vae")
    torch.save(torch.randn(TOKENS, WIDTH), folder / "prompt_embeds.pt")
    torch.save(torch.randn(POOLED), folder / "pool_embeds.pt")
    return folder


def save_sd2(folder: Path, *, prediction: str = "epsilon", with_text: bool = True) -> Path:
    """A folder as SD2.1's, text encoder and all."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    unet.save_pretrained(folder / "unet")
    make_vae(4, PRESETS["sd-onestep"].scale).save_pretrained(folder / "vae")
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction, clip_sample=False
    ).save_pretrained(folder / "scheduler")
    if with_text:
        save_text(folder)
    return folder


def save_text(folder: Path) -> None:
    """A text encoder of two layers and a tokenizer of a few letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefgh", *(f"{letter}</w>" for letter in "abcdefgh")]
    source = folder / "words"
    source.mkdir(parents=True)
    (source / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(source / "vocab.json"), str(source / "merges.txt"), model_max_length=TOKENS).save_pretrained(
        folder / "tokenizer"
    )
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def add_lora(part: Any, layers: list[str], *, rank: int = 2, alpha: int | None = None, name: str = "default") -> Any:
    """A random LoRA on a part, both sides filled (peft starts one of them at zero); returns the part."""
    from peft import LoraConfig

    more = {} if alpha is None else {"lora_alpha": alpha}
    part.add_adapter(LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=layers, **more), adapter_name=name)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, value in part.named_parameters():
            if "lora_" in key and name in key:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return part


def lora_tensors(part: Any, name: str = "default") -> dict[str, torch.Tensor]:
    from peft.utils import get_peft_model_state_dict

    return {key: value.detach().clone() for key, value in get_peft_model_state_dict(part, adapter_name=name).items()}


def save_lora(folder: Path, file: str, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"{prefix}.{key}": value.contiguous() for key, value in tensors.items()}, folder / file)


def image_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, H, W) float32 in [0, 1]."""
    levels = photo(height, width, seed=seed).astype(np.float32) / 255
    return torch.from_numpy(levels).permute(2, 0, 1).contiguous()


def save_lr(path: Path, height: int, width: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(height, width)).save(path)
    return path


def opened(bases: Path, preset: str, lora: Path | None = None) -> Refiner:
    return open_refiner(preset, str(bases / FOLDERS[preset]), lora, CPU)


def refusal_of(base: Path, lora: Path | None = None, preset: str = "tsdsr") -> str:
    with pytest.raises(Refusal) as caught:
        open_refiner(preset, str(base), lora, CPU)
    line = str(caught.value)
    assert "\n" not in line
    return line
