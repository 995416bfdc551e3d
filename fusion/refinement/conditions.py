"""A refiner's folders -> its model's conditioning tensors: from files, or from the base's text encoder.

Axes: B batch (1), L tokens, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fusion.refinement.locate import read_config, weights_of
from imaging.refusal import Refusal
from imaging.tensors.safe import read_safetensors
from imaging.tensors.unpickle import load_plain

if TYPE_CHECKING:
    from pathlib import Path

    from fusion.refinement.presets import Condition, Preset

TEXT, TOKENS = "text_encoder", "tokenizer"
_SUFFIXES = (".safetensors", ".pt")


def find_conditions(preset: Preset, folder: Path, lora: Path | None) -> dict[str, Path]:
    """The model's argument -> its file, in the LoRA's folder or the base's; empty where the text encoder serves."""
    places = [place for place in (lora, folder) if place is not None and place.is_dir()]
    found: dict[str, Path] = {}
    for argument, condition in preset.conditions.items():
        names = [place / f"{condition.stem}{suffix}" for place in places for suffix in _SUFFIXES]
        present = [path for path in names if path.is_file()]
        if present:
            found[argument] = present[0]
    if len(found) == len(preset.conditions):
        return found
    if preset.text and (folder / TEXT / "config.json").is_file():
        _check_text(folder, preset)
        return {}
    lacking = [f"{one.stem}.pt" for argument, one in preset.conditions.items() if argument not in found]
    cure = f"put what {preset.lora_page} ships there" + (f", or the base's {TEXT} and {TOKENS}" if preset.text else "")
    raise Refusal(f"lacks {' and '.join(lacking)}", where=places[0], cure=cure)


def load_conditions(preset: Preset, folder: Path, files: dict[str, Path]) -> dict[str, Tensor]:
    """float32 on the CPU: (1, L, C) for sequences, (1, C) for single vectors, as wide as the model's config says."""
    config = read_config(folder / preset.subfolder)
    if not files:
        (argument,) = preset.conditions
        return {argument: _fitting(_empty_prompt(folder), preset.conditions[argument], config, folder / TEXT)}
    return {
        argument: _fitting(_read(path), preset.conditions[argument], config, path) for argument, path in files.items()
    }


def text_files(folder: Path) -> list[Path]:
    """What decides the empty prompt's tensor."""
    return [folder / TEXT / "config.json", *weights_of(folder / TEXT, "model"), *sorted((folder / TOKENS).glob("*.*"))]


def _check_text(folder: Path, preset: Preset) -> None:
    cure = f"take the whole base from {preset.page}"
    if not weights_of(folder / TEXT, "model"):
        raise Refusal("lacks model.safetensors", where=folder / TEXT, cure=cure)
    if not (folder / TOKENS).is_dir():
        raise Refusal(f"lacks {TOKENS}/", where=folder, cure=cure)


def _read(path: Path) -> Any:
    cure = "fetch it again"
    if path.suffix == ".pt":
        return load_plain(path, cure=cure)
    tensors = list(read_safetensors(path, cure=cure)[1].values())
    return tensors[0] if len(tensors) == 1 else tensors


def _fitting(found: Any, condition: Condition, config: dict[str, Any], where: Path) -> Tensor:
    """Check rank and width, add the batch axis."""
    width, cure = config.get(condition.width), "take the tensors that belong to this base"
    if not isinstance(found, Tensor):
        raise Refusal(f"holds a {type(found).__name__}, not one tensor", where=where, cure=cure)
    tensor = found.float()
    while tensor.ndim > condition.axes and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != condition.axes or tensor.shape[-1] != width:
        what = f"is {tuple(found.shape)}, {condition.axes} axes are needed of which the last is {width}"
        raise Refusal(what, where=where, cure=cure)
    if not bool(torch.isfinite(tensor).all()):
        raise Refusal("holds NaN or infinity", where=where, cure="fetch it again")
    return tensor[None]


@torch.no_grad()
def _empty_prompt(folder: Path) -> Tensor:
    """(1, L, C): the base's text encoding of the empty prompt."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer: Any = CLIPTokenizer.from_pretrained(folder, subfolder=TOKENS)
    loaded: Any = CLIPTextModel.from_pretrained(folder, subfolder=TEXT, output_loading_info=True)
    encoder, report = loaded
    if report["missing_keys"]:
        raise Refusal(f"lacks {sorted(report['missing_keys'])[0]}", where=folder / TEXT, cure="fetch the base again")
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoder.float()(tokens.input_ids)[0]
