"""LoRA files and the loaded parts they belong to -> the same parts with the LoRA fused into their weights, strictly.

A key that fits nothing is refused: diffusers would only warn, and the image would be wrong without a word.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from imaging.refusal import Refusal
from imaging.tensors.unpickle import load_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from fusion.refinement.presets import Preset

_ADAPTER = "refiner"
_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
# OSEDiff's own file names its adapters and leaves peft's alpha at its default.
_NAMED = re.compile(r"\.lora_([AB])\.default_\w+\.weight$")
_PEFT_ALPHA = 8


def find_loras(preset: Preset, folder: Path) -> list[Path]:
    """The files of a LoRA folder: the preset's, all of them, or the method's own archive."""
    archive = folder / preset.archive if preset.archive else None
    if archive is not None and archive.is_file():
        return [archive]
    files = [folder / one.file for one in preset.loras]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        other = f" (or {preset.archive})" if preset.archive else ""
        what = f"lacks {' and '.join(missing)}{other}" if folder.is_dir() else "no such folder"
        raise Refusal(what, where=f"--refine-lora {folder}", cure=f"see {preset.lora_page}")
    return files


def fuse_loras(preset: Preset, files: list[Path], parts: Mapping[str, Any]) -> None:
    """Into the weights of `parts`: "model" and "vae"."""
    if files[0].name == preset.archive:
        _fuse_archive(files[0], parts)
        return
    for one, path in zip(preset.loras, files, strict=True):
        keys = _shapes(path)
        prefix = one.prefix if all(key.startswith(f"{one.prefix}.") for key in keys) else None
        plain = {key.removeprefix(f"{prefix}.") if prefix else key: shape for key, shape in keys.items()}
        _check(parts[one.part], plain, path)
        # diffusers reads the file itself, since the header may hold an alpha of its own.
        _fuse(parts[one.part], path.parent, plain, path, weight_name=path.name, prefix=prefix)


def _fuse(part: Any, source: Any, plain: Mapping[str, Any], path: Path, **how: Any) -> None:
    from peft.utils import get_peft_model_state_dict

    part.load_lora_adapter(source, adapter_name=_ADAPTER, **how)
    taken = get_peft_model_state_dict(part, adapter_name=_ADAPTER)
    left = sorted(plain.keys() ^ taken.keys())
    if left:
        raise Refusal(f"{left[0]} was not taken up", where=path, cure="convert it to the keys that diffusers writes")
    part.fuse_lora()
    part.unload_lora()


def _fuse_archive(path: Path, parts: Mapping[str, Any]) -> None:
    """OSEDiff's pickle: LoRA of the UNet and of the VAE under their adapters' names, and whole tensors beside them."""
    document = load_tensors(path, cure="take osediff.pkl from its authors again")
    for part, name in (("model", "unet"), ("vae", "vae")):
        try:
            rank, tensors = int(document[f"rank_{name}"]), dict(document[f"state_dict_{name}"])
        except (KeyError, TypeError, ValueError) as error:
            cure = "take osediff.pkl from its authors again"
            raise Refusal(f"is not laid out as OSEDiff's file ({error})", where=path, cure=cure) from None
        lora = {_NAMED.sub(r".lora_\1.weight", key): value for key, value in tensors.items() if "lora" in key}
        _check(parts[part], {key: tuple(value.shape) for key, value in lora.items()}, path)
        whole = {key.replace(".base_layer", ""): value for key, value in tensors.items() if "lora" not in key}
        _replace(parts[part], whole, path)
        scaled = {key: value * (_PEFT_ALPHA / rank) if ".lora_B." in key else value for key, value in lora.items()}
        _fuse(parts[part], scaled, lora, path, prefix=None)


def _replace(part: nn.Module, whole: Mapping[str, Tensor], path: Path) -> None:
    own = part.state_dict()
    for key, value in whole.items():
        if key not in own or own[key].shape != value.shape:
            raise Refusal(f"{key} fits nothing in the base", where=path, cure="take the base it was trained on")
        own[key].copy_(value)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise Refusal(f"cannot be read ({error})", where=path, cure="fetch it again") from None


def _check(part: nn.Module, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Each tensor belongs to a layer of the part and fits it; each layer has both sides."""
    cure = "take the LoRA that was trained on this base"
    modules = dict(part.named_modules())
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        match = _KEY.match(key)
        if match is None:
            raise Refusal(f"{key} is no LoRA key of peft's kind", where=path, cure="convert it with diffusers")
        sides.setdefault(match["module"], {})[match["side"]] = shape
    if not sides:
        raise Refusal("holds no LoRA", where=path, cure=cure)
    for name, found in sides.items():
        weight: Any = getattr(modules.get(name), "weight", None)
        if weight is None:
            raise Refusal(f"{name} is no layer of the {type(part).__name__}", where=path, cure=cure)
        a, b = found.get("A"), found.get("B")
        if a is None or b is None or a[1] != weight.shape[1] or b[0] != weight.shape[0] or a[0] != b[1]:
            raise Refusal(f"{name}: sides {a} and {b} do not fit {tuple(weight.shape)}", where=path, cure=cure)
