"""A folder or a Hub id -> the local folder of the base model, with every file that is needed in it, or a refusal.

Read before any weights: which files there are, whose class they are, how many channels, which VAE.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from fusion.refinement.presets import Preset

VAE = "vae"
WEIGHTS = "diffusion_pytorch_model"
_SAFE = ".safetensors"


def locate(model: str, preset: Preset) -> Path:
    """A folder stays as it is; an id is fetched into the Hub's cache, or found there when offline."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists() or folder.is_absolute() or model.count("/") != 1:
        raise Refusal("no such folder, and no Hub id", where=f"--refine-model {model}", cure=f"see {preset.page}")
    return _fetched(model, preset)


def check_base(folder: Path, preset: Preset) -> None:
    """Refuse a base that lacks files or is of another kind."""
    wanted = [f"{preset.subfolder}/config.json", f"{VAE}/config.json"]
    wanted += ["scheduler/scheduler_config.json"] if preset.update == "ddpm" else []
    missing = [one for one in wanted if not (folder / one).is_file()]
    missing += [f"{sub}/{WEIGHTS}{_SAFE}" for sub in (preset.subfolder, VAE) if not weights_of(folder / sub)]
    if missing:
        raise Refusal(f"lacks {', '.join(missing)}", where=folder, cure=f"take the whole base from {preset.page}")
    model, vae = read_config(folder / preset.subfolder), read_config(folder / VAE)
    channels = preset.latent_channels
    facts: list[tuple[str, str, Any, Any]] = [
        (preset.subfolder, "_class_name", model.get("_class_name"), preset.model_class),
        (preset.subfolder, "in_channels", model.get("in_channels"), channels),
        (preset.subfolder, "out_channels", model.get("out_channels") or model.get("in_channels"), channels),
        (VAE, "_class_name", vae.get("_class_name"), "AutoencoderKL"),
        (VAE, "latent_channels", vae.get("latent_channels"), channels),
        (VAE, "scaling_factor", vae.get("scaling_factor"), preset.scale),
        (VAE, "the number of block_out_channels", len(vae.get("block_out_channels", ())), 4),
    ]
    for sub, name, found, needed in facts:
        if found != needed:
            cure = f"this refiner runs on {preset.page}"
            raise Refusal(f"{name} is {found}, {needed} is needed", where=folder / sub / "config.json", cure=cure)


def read_config(folder: Path) -> dict[str, Any]:
    """A part's `config.json`."""
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refusal(f"cannot be read ({error})", where=path, cure="fetch the base again") from None
    if not isinstance(document, dict):
        raise Refusal("is no configuration", where=path, cure="fetch the base again")
    return document


def weights_of(folder: Path, stem: str = WEIGHTS) -> list[Path]:
    """A part's weights: one file, or the shards that an index lists; the half-precision variant only if alone."""
    for variant in ("", ".fp16"):
        single, index = folder / f"{stem}{variant}{_SAFE}", folder / f"{stem}{_SAFE}.index{variant}.json"
        if single.is_file():
            return [single]
        if index.is_file():
            shards = {folder / name for name in _shard_names(index)}
            absent = sorted(path for path in shards if not path.is_file())
            if absent:
                raise Refusal("this shard is missing", where=absent[0], cure="fetch the base again")
            return [index, *sorted(shards)]
    return []


def _shard_names(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"is no index of weights ({error})", where=index, cure="fetch the base again") from None


def _fetched(model: str, preset: Preset) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    parts = [preset.subfolder, VAE]
    patterns = [f"{part}/{name}" for part in parts for name in ("config.json", f"{WEIGHTS}*{_SAFE}*")]
    patterns += ["scheduler/scheduler_config.json"] if preset.update == "ddpm" else []
    patterns += ["text_encoder/config.json", "text_encoder/model*.safetensors", "tokenizer/*"] if preset.text else []
    patterns += [f"{condition.stem}.*" for condition in preset.conditions.values()]
    where, gate = f"--refine-model {model}", "accept its licence on its page, then `hf auth login`; "
    try:
        return Path(snapshot_download(model, allow_patterns=patterns, ignore_patterns=["*.fp16.*", "*non_ema*"]))
    except GatedRepoError:
        raise Refusal("is gated", where=where, cure=f"{gate}or name a folder ({preset.page})") from None
    except LocalEntryNotFoundError:
        what = "is no folder, is not in the Hub's cache, and the Hub cannot be reached (or HF_HUB_OFFLINE is set)"
        cure = f"go online once{', ' + gate if preset.gated else ' '}or name a folder ({preset.page})"
        raise Refusal(what, where=where, cure=cure) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise Refusal("no such folder, and no such Hub id", where=where, cure=f"see {preset.page}") from None
    except (HfHubHTTPError, OSError) as error:
        first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        cure = f"try again, or name a folder ({preset.page})"
        raise Refusal(f"cannot be fetched ({first})", where=where, cure=cure) from None
