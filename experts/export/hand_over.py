"""An opened expert -> its ONNX graph, checked, for a front door to hand to the fusion of several."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts.export.write import checked_graph, require_network

if TYPE_CHECKING:
    from experts.spec import Expert


def graph_of(expert: Expert, *, features: bool) -> tuple[Any, int]:
    """The graph (`data` -> `output`, `features`), and how many channels of features it gives."""
    network = require_network(expert)
    features = features and network.tap is not None
    with tempfile.TemporaryDirectory() as scratch:
        graph, _ = checked_graph(network, Path(scratch) / "expert.onnx", features=features)
    return graph, network.identity.channels if features else 0
