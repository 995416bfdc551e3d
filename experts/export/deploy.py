"""A native expert's file -> the same expert, its multi-branch convolutions folded: equal images, less to compute."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from experts.loading.load import load_network
from experts.loading.weights import ARCHITECTURE_KEY, HYPERPARAMETERS_KEY, read_state_file, require_weights
from experts.native.base import NativeNetwork
from experts.open import spec_of
from imaging.hashes import file_sha256
from imaging.refusal import Refusal
from imaging.tensors.safe import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

    from experts.catalog import Catalog
    from experts.spec import ExpertSpec

FOLDED_FROM = "folded_from_sha256"


@dataclass(frozen=True)
class Deployed:
    """What was written, and how far its output is from the original's on a test image."""

    file: str
    architecture: str
    folded: int
    parameters: int
    largest_difference: float
    sha256: str


def deploy(wanted: str, catalog: Catalog, out: Path) -> Deployed:
    """Load, fold, compare, write as float32 with the original's header; a file already folded is refused."""
    if out.suffix != ".safetensors":
        raise Refusal("is not a .safetensors name", where=out, cure="name the output FILE.safetensors")
    spec: ExpertSpec = spec_of(wanted, catalog)
    path, _ = require_weights(spec)
    state = read_state_file(path)
    loaded = load_network(state, spec)
    network = loaded.network
    if not isinstance(network, NativeNetwork):
        raise Refusal(f"is {loaded.architecture}, which has nothing to fold", where=path, cure="use it as it is")
    test_BCHW = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, folded, after = network(test_BCHW), network.reparameterize(), network(test_BCHW)
    if not folded:
        raise Refusal("is folded already", where=path, cure="use it as it is")
    header = {
        **state.header,
        ARCHITECTURE_KEY: loaded.architecture,
        HYPERPARAMETERS_KEY: json.dumps(network.hyperparameters),
        FOLDED_FROM: state.sha256,
    }
    # Float32: rounding the sums of branches once more would cost what folding is promised to keep.
    write_safetensors(out, network.state_dict(), header)
    return Deployed(
        file=str(out),
        architecture=loaded.architecture,
        folded=folded,
        parameters=sum(p.numel() for p in network.parameters()),
        largest_difference=float((after - before).abs().max()),
        sha256=file_sha256(out),
    )
