"""A fusion model <-> one safetensors file whose header holds config, experts, base and training record as JSON."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from fusion.network.base.blend import BaseRecord
from fusion.network.interface import TrainingRecord
from fusion.network.settings import FusionSettings
from imaging.refusal import Refusal
from imaging.settings import parse_settings
from imaging.tensors.safe import read_safetensors, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor
    from typing_extensions import Self

    from fusion.network.base.blend import BaseBlend

FILE_NAME = "model.safetensors"
FORMAT = "championship-sr-fusion"
VERSION = "1"
_EXTRA = "_extra_state"  # the base's bytes in a state dict; in the file the header holds them
_ENTRIES = ("config", "experts", "base", "base_weights", "training", "tensors_sha256")


class SavedModel(Protocol):
    """What of a fusion network its file holds. The network imports this file, so it cannot be named here."""

    settings: FusionSettings
    base: BaseBlend
    record: TrainingRecord

    def state_dict(self) -> dict[str, Tensor]:
        """Its tensors by name, the base's bytes among them."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """Take them over."""
        ...

    def eval(self) -> Self:
        """Itself, no more in training."""
        ...


Model = TypeVar("Model", bound=SavedModel)


def save_model(model: SavedModel, path: Path) -> None:
    """Write the file whole or not at all. Weights that are not finite are refused."""
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith(_EXTRA)
    }
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise Refusal(f"'{broken[0]}' is not finite", where=path, cure="save an earlier checkpoint")
    config = model.settings.model_dump(mode="json")
    header = {
        "config": {key: value for key, value in config.items() if key != "experts"},
        "experts": config["experts"],
        "base": model.base.record.model_dump(mode="json"),
        "base_weights": model.base.weights(model.settings.names),
        "training": model.record.model_dump(mode="json"),
        "tensors_sha256": fingerprint(tensors),
    }
    metadata = {"format": FORMAT, "version": VERSION} | {key: json.dumps(value) for key, value in header.items()}
    write_safetensors(path, tensors, metadata)


def load_as(build: Callable[[FusionSettings, BaseRecord, TrainingRecord], Model], path: Path) -> Model:
    """A file, or a folder with `model.safetensors` -> the built model in eval mode. An invalid file is refused."""
    path = path / FILE_NAME if path.is_dir() else path
    header, tensors = _read(path)
    settings = parse_settings(FusionSettings, {**header["config"], "experts": header["experts"]}, where=str(path))
    base = parse_settings(BaseRecord, header["base"], where=str(path))
    record = parse_settings(TrainingRecord, header["training"], where=str(path))
    model = build(settings, base, record)
    _check_tensors(path, tensors, model.state_dict())
    if header["tensors_sha256"] != fingerprint(tensors):
        raise Refusal("its weights are not those that were saved", where=path, cure="copy or train it again")
    _check_base(path, header["base_weights"], model.base.weights(settings.names))
    model.load_state_dict(tensors | {f"base.{_EXTRA}": model.base.get_extra_state()})
    return model.eval()


def read_header(path: Path) -> dict[str, Any]:
    """A model file's header, decoded."""
    return _read(path / FILE_NAME if path.is_dir() else path)[0]


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """sha256 over names and bytes of all tensors, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise Refusal("no such model file", where=path, cure="check the path, or train a model first")
    metadata, loaded = read_safetensors(path, cure="copy or train it again", keys=("format", "version", *_ENTRIES))
    if metadata.get("format") != FORMAT:
        raise Refusal("is not a fusion model", where=path, cure="give a file that `train.py` saved")
    if metadata.get("version") != VERSION:
        raise Refusal(f"has format version {metadata.get('version')}", where=path, cure="use a newer release")
    try:
        return {key: json.loads(metadata[key]) for key in _ENTRIES}, loaded
    except (KeyError, ValueError, RecursionError) as error:
        raise Refusal(f"its header is damaged ({error})", where=path, cure="copy or train it again") from None


def _check_tensors(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    names = {name for name in expected if not name.endswith(_EXTRA)}
    for name in sorted(names ^ set(found)):
        verb = "lacks" if name in names else "has an unknown"
        raise Refusal(f"{verb} tensor '{name}'", where=path, cure="use the release that saved it")
    for name in names:
        if found[name].shape != expected[name].shape:
            raise Refusal(f"'{name}' is {tuple(found[name].shape)}", where=path, cure="use the release that saved it")


def _check_base(path: Path, stored: list[list[float]], solved: tuple[tuple[float, ...], ...]) -> None:
    difference = (torch.tensor(stored).double() - torch.tensor(solved).double()).abs().max()
    if not difference < 1e-4:
        raise Refusal("its base weights do not follow from its Gram matrix", where=path, cure="fit the base again")
