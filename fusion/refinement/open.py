"""Preset, base model and LoRA -> a loaded `Refiner`; everything that is missing is refused before any weights are read.

diffusers, peft and transformers are the extra `diffusion`: imported inside functions, only when a refiner is opened.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from fusion.refinement.conditions import find_conditions, load_conditions, text_files
from fusion.refinement.locate import VAE, check_base, locate, weights_of
from fusion.refinement.lora import find_loras, fuse_loras
from fusion.refinement.native.network import EXTRA_CURE
from fusion.refinement.native.open import NativeRefiner, open_native
from fusion.refinement.presets import NativePreset, preset_of
from fusion.refinement.step import update_of
from imaging.hashes import file_sha256
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from fusion.refinement.presets import Preset
    from fusion.refinement.step import Update

log = logging.getLogger(__name__)

EXTRA = ("diffusers", "peft", "transformers")


@dataclass(frozen=True)
class Refiner:
    """A loaded refiner. `identity` goes into the record of what made an image: by content, not by path."""

    preset: Preset
    model: Any
    vae: Any
    update: Update
    conditions: Mapping[str, Tensor]  # on the device, in `dtype`
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    identity: Mapping[str, Any]


AnyRefiner = Refiner | NativeRefiner


def diffusion_installed() -> bool:
    """Is the extra installed? Imports nothing."""
    return all(find_spec(name) is not None for name in EXTRA)


def open_refiner(preset: str, model: str | None, lora: Path | None, device: torch.device) -> AnyRefiner:
    """Check, load, fuse the LoRA; bf16 (or fp16) on CUDA, float32 elsewhere. The native refiner is float32."""
    chosen = preset_of(preset)
    _require_extra()
    if isinstance(chosen, NativePreset):
        if lora is not None:
            cure = "leave it out: --refine-model FILE names other weights of the native refiner"
            raise Refusal("--refine native takes no LoRA", where="command line", cure=cure)
        return open_native(model, device)
    if model is None:
        cure = f"add --refine-model with a folder or Hub id of {chosen.page} (LoRA: {chosen.lora_page})"
        raise Refusal(f"--refine {preset} needs a base model", where="command line", cure=cure)
    folder = locate(model, chosen)
    check_base(folder, chosen)
    loras = [] if lora is None else find_loras(chosen, lora)
    found = find_conditions(chosen, folder, lora)
    conditions = load_conditions(chosen, folder, found)
    dtype = precision_on(device)
    # LoRA is fused in float32 and cast afterwards: in half precision small updates would be lost to rounding.
    parts = _load_parts(chosen, folder, torch.float32 if loras else dtype)
    update = update_of(chosen, folder)
    if loras:
        fuse_loras(chosen, loras, parts)
    else:
        log.warning("no --refine-lora: the weights in %s must themselves be trained for one step", folder)
    delicate = dtype == torch.float16 and parts["vae"].config["force_upcast"]
    vae_dtype = torch.float32 if delicate else dtype
    identity = {
        "preset": preset,
        "base": _hashes(_base_files(chosen, folder), folder),
        "lora": {path.name: file_sha256(path) for path in loras},
        "conditions": {path.name: file_sha256(path) for path in found.values()} or _hashes(text_files(folder), folder),
        "precision": str(dtype).removeprefix("torch."),
    }
    return Refiner(
        preset=chosen,
        model=_settled(parts["model"], device, dtype),
        vae=_settled(parts["vae"], device, vae_dtype),
        update=update,
        conditions={argument: one.to(device, dtype) for argument, one in conditions.items()},
        device=device,
        dtype=dtype,
        vae_dtype=vae_dtype,
        identity=identity,
    )


def precision_on(device: torch.device) -> torch.dtype:
    """Half the memory where the device computes in it, exactness on the CPU."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _require_extra() -> None:
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise Refusal(f"diffusion refinement needs {', '.join(missing)}", where="--refine", cure=EXTRA_CURE)


def _load_parts(preset: Preset, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    try:
        import diffusers

        classes = {name: getattr(diffusers, name) for name in (preset.model_class, "AutoencoderKL")}
    except (ImportError, RuntimeError, AttributeError) as error:  # diffusers imports its parts when they are named
        first = " ".join(str(error).split())[:200]
        raise Refusal(f"diffusers cannot be imported ({first})", where="--refine", cure=EXTRA_CURE) from error
    kinds = {"model": (preset.model_class, preset.subfolder), "vae": ("AutoencoderKL", VAE)}
    return {part: _load(classes[kind], folder, sub, dtype) for part, (kind, sub) in kinds.items()}


def _load(kind: Any, folder: Path, sub: str, dtype: torch.dtype) -> Any:
    """By diffusers' own loader, but strictly: it would fill what a file lacks with random numbers."""
    variant = "fp16" if ".fp16" in weights_of(folder / sub)[0].name else None
    cure = "fetch the base again"
    try:
        part, report = kind.from_pretrained(
            folder, subfolder=sub, torch_dtype=dtype, use_safetensors=True, variant=variant, output_loading_info=True
        )
    except Exception as error:  # loaders fail in many ways on damaged files
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refusal(f"cannot be loaded ({first})", where=folder / sub, cure=cure) from error
    wrong = [name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report[key]]
    if wrong:
        raise Refusal(f"its file and its config disagree on {wrong[0]}", where=folder / sub, cure=cure)
    return part


def _settled(part: Any, device: torch.device, dtype: torch.dtype) -> Any:
    # diffusers warns of any cast, even to the same type.
    part = part.to(device) if part.dtype == dtype else part.to(device, dtype)
    return part.requires_grad_(False).eval()


def _base_files(preset: Preset, folder: Path) -> list[Path]:
    """All that decides what the base does."""
    files = [folder / "scheduler" / "scheduler_config.json"] if preset.update == "ddpm" else []
    for sub in (preset.subfolder, VAE):
        files += [folder / sub / "config.json", *weights_of(folder / sub)]
    return files


def _hashes(files: list[Path], folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
