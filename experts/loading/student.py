"""The name of an architecture, or a weights file -> a network to be trained, as its own class builds it.

What spandrel knows is built by spandrel's class of that name and recognised again from its tensors: the file that is
trained opens in spandrel as it is.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experts.loading.load import load_network
from experts.loading.weights import StateFile, read_state_file, require_weights
from experts.native.base import NativeNetwork
from experts.open import spec_of
from experts.pad import pad_right_bottom
from experts.spec import ExpertSpec, WeightsSource
from imaging.refusal import Refusal, nearest
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from experts.catalog import Catalog
    from experts.loading.loaded import LoadedNetwork

SCALE_SETTINGS = ("scale", "upscale", "upscaling_factor", "up_scale")


@dataclass(frozen=True)
class TrainableNetwork:
    """The network with gradients; `run` pads, runs and cuts, in training as in use.

    A routed network of ours gives (image, balance) while it is trained, see `experts/native/base.py`.
    """

    network: nn.Module
    architecture: str
    hyperparameters: dict[str, Any]
    run: Callable[[nn.Module, Tensor], Tensor | tuple[Tensor, Tensor]]
    scale: int


def build_architecture(name: str, settings: Mapping[str, Any], seed: int, scale: int = SCALE) -> TrainableNetwork:
    """spandrel's class of that name, of this scale, with seeded random weights."""
    from spandrel import MAIN_REGISTRY  # two seconds, with torchvision: own networks need none of it

    known = [str(one.architecture.id) for one in MAIN_REGISTRY.architectures()]
    if name not in known:
        raise Refusal(f"unknown network '{name}'", where="network.name", cure=nearest(name, known))
    make = getattr(importlib.import_module(f"spandrel.architectures.{name}"), name, None)
    if not isinstance(make, type):
        raise Refusal(f"spandrel has no class of the name {name}", where="network.name", cure="choose another network")
    parameters = inspect.signature(make).parameters
    chosen = {key: scale for key in SCALE_SETTINGS if key in parameters} | dict(settings)
    torch.manual_seed(seed)
    try:
        network = make(**chosen)
    except (TypeError, ValueError, AssertionError) as error:
        raise Refusal(f"cannot be built: {error}", where="network.settings", cure="correct that setting") from error
    state = StateFile(Path(name), network.state_dict(), {}, "")
    # With all its settings, defaults too: some leave no trace in the tensors.
    told: dict[str, Any] = getattr(network, "hyperparameters", chosen)
    spec = ExpertSpec(name="student", architecture=name, weights=(WeightsSource(file=name),), hyperparameters=told)
    return _trainable(load_network(state, spec))


def open_student(wanted: str, catalog: Catalog) -> TrainableNetwork:
    """The network of an expert's name or file, to be trained on."""
    spec = spec_of(wanted, catalog)
    path, _ = require_weights(spec)
    return _trainable(load_network(read_state_file(path), spec))


def _trainable(loaded: LoadedNetwork) -> TrainableNetwork:
    """Thawed, in float32."""
    padding, call, scale = loaded.padding, loaded.call, loaded.scale
    pads_itself = isinstance(loaded.network, NativeNetwork)

    def run(network: nn.Module, lr_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if pads_itself:
            return network(lr_BCHW)
        height, width = lr_BCHW.shape[-2:]
        return call(network, pad_right_bottom(lr_BCHW, padding))[..., : scale * height, : scale * width]

    network = loaded.network.float().requires_grad_(requires_grad=True)
    values: dict[str, Any] = getattr(network, "hyperparameters", {})
    plain = {k: v for k, v in values.items() if is_plain(v)}
    return TrainableNetwork(network, loaded.architecture, plain, run, scale)


def is_plain(value: object) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
