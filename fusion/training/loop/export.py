"""A network's weights and where they come from -> one safetensors file; and such a file's weights back into a network.

The header holds what the network is (architecture, hyperparameters) and how it was made (settings, git, data, scores),
so that the file can be used and judged without anything beside it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import torch

from imaging.refusal import Refusal
from imaging.tensors.safe import WEIGHTS_KEYS, WEIGHTS_OPTIONAL, read_safetensors, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def stored(weights: Mapping[str, Tensor], dtype: Literal["fp32", "fp16"]) -> dict[str, Tensor]:
    """Weights as they will lie in the file; a value that the format cannot hold is refused."""
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype == torch.float32:
            tensor = tensor.to(_DTYPES[dtype])
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Refusal(f"'{name}' is not finite as {dtype}", where="export", cure="export fp32, or train again")
        converted[name] = tensor.clone()
    return converted


def export_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    *,
    architecture: str,
    hyperparameters: Mapping[str, Any],
    provenance: Mapping[str, Any],
    dtype: Literal["fp32", "fp16"] = "fp32",
) -> None:
    """Write the file whole or not at all."""
    header = {
        "architecture": architecture,
        "hyperparameters": json.dumps(dict(hyperparameters)),
        "provenance": json.dumps(dict(provenance), default=str),
    }
    write_safetensors(path, stored(weights, dtype), header)


def read_exported(path: Path) -> dict[str, Tensor]:
    """A file's tensors, as they are stored."""
    if not path.is_file():
        raise Refusal("cannot be read (no such file)", where=path, cure="check the path")
    return read_safetensors(path, cure="copy or train it again", keys=WEIGHTS_KEYS, optional=WEIGHTS_OPTIONAL)[1]


def load_exported(network: nn.Module, path: Path) -> None:
    """Strictly load a file's weights, fp16 or fp32, into the network."""
    weights, own = read_exported(path), network.state_dict()
    wrong = sorted(set(weights) ^ set(own)) or [name for name in own if own[name].shape != weights[name].shape]
    if wrong:
        raise Refusal(
            f"does not fit the network: '{wrong[0]}'",
            where=path,
            cure="give the settings it was trained with, or name what is to be new in network.start_new",
        )
    network.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in weights.items()})
