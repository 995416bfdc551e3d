"""The shipped weights, or a file that `train.py` wrote -> a loaded `NativeRefiner`, strictly."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.refinement.native.network import ARCHITECTURE, NativeRefinerNetwork
from fusion.refinement.presets import NATIVE
from imaging.hashes import file_sha256
from imaging.paths import find_pretrained, pretrained_folder
from imaging.refusal import Refusal
from imaging.tensors.safe import WEIGHTS_KEYS, WEIGHTS_OPTIONAL, read_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from fusion.refinement.presets import NativePreset

_CURE = "take a file that `train.py --config configs/refiner.yaml` wrote"


@dataclass(frozen=True)
class NativeRefiner:
    """A loaded native refiner. `identity` goes into the record of what made an image: by content, not by path."""

    preset: NativePreset
    model: Any  # NativeRefinerNetwork, or what times it
    device: torch.device
    identity: Mapping[str, Any]


def open_native(model: str | None, device: torch.device) -> NativeRefiner:
    """float32 everywhere: it is small."""
    path = _find(model)
    header, weights = read_safetensors(path, cure=_CURE, keys=WEIGHTS_KEYS, optional=WEIGHTS_OPTIONAL)
    if header.get("architecture") != ARCHITECTURE:
        what = f"holds {header.get('architecture', 'no known network')}, not {ARCHITECTURE}"
        raise Refusal(what, where=path, cure=_CURE)
    network = _built(header["hyperparameters"], path)
    _load(network, weights, path)
    network.to(device).requires_grad_(False).eval()
    return NativeRefiner(
        preset=replace(NATIVE, margin=network.reach, multiple=network.multiple),
        model=network,
        device=device,
        identity={"preset": "native", "weights": {path.name: file_sha256(path)}, "precision": "float32"},
    )


def _find(model: str | None) -> Path:
    if model is not None:
        path = Path(model)
        if not path.is_file():
            what = "is a folder, not a refiner's file" if path.is_dir() else "no such file"
            raise Refusal(what, where=f"--refine-model {model}", cure=f"leave it out, or {_CURE}")
        return path
    found = find_pretrained(NATIVE.file)
    if found is None:
        raise Refusal("the refiner's weights are missing", where=pretrained_folder() / NATIVE.file, cure=_CURE)
    return found


def _built(hyperparameters: str, path: Path) -> NativeRefinerNetwork:
    try:
        return NativeRefinerNetwork(**json.loads(hyperparameters))
    except (TypeError, ValueError) as error:
        raise Refusal(f"its network cannot be built ({error})", where=path, cure=_CURE) from error


def _load(network: NativeRefinerNetwork, weights: dict[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    wrong = sorted(set(weights) ^ set(own)) or [name for name in own if own[name].shape != weights[name].shape]
    if wrong:
        raise Refusal(f"does not fit its own header: '{wrong[0]}'", where=path, cure=_CURE)
    network.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in weights.items()})
