"""A name or file -> the expert's ONNX graph, checked, for a front door to hand to the fusion of several."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from experts.catalog import load_catalog
from experts.export.write import checked_graph
from experts.loading.onnx_network import OnnxNetwork
from experts.open import open_expert
from experts.run import NetworkExpert
from imaging.refusal import Refusal


def open_graph(wanted: str, *, config: Path | None, features: bool) -> tuple[str, Any, int]:
    """The expert's name, its graph (`data` -> `output`, `features`) and how many channels of features it gives."""
    cpu = torch.device("cpu")
    expert = open_expert(wanted, load_catalog(config), device=cpu, features="find" if features else "none")
    where = f"expert {expert.name}"
    if not isinstance(expert, NetworkExpert):
        raise Refusal("is a folder of images, which no graph can hold", where=where, cure="name a model's weights")
    if isinstance(expert.network, OnnxNetwork):
        raise Refusal("is an ONNX file already", where=where, cure="export the weights that it was made from")
    with tempfile.TemporaryDirectory() as scratch:
        graph, _ = checked_graph(expert, Path(scratch) / "expert.onnx", features=features and expert.tap is not None)
    return expert.name, graph, expert.identity.channels if features else 0
