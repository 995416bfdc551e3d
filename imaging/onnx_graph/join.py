"""ONNX models, each fed from the image or from another's outputs -> one model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imaging.onnx_graph.packages import require
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DATA, OUTPUT, FEATURES = "data", "output", "features"  # ncnn's and Upscayl's names as well
METADATA = "championship_sr"


@dataclass(frozen=True)
class Part:
    """A model under a name of its own; `sources` says what each of its inputs is: `data`, or `PART/OUTPUT`."""

    name: str
    model: Any
    sources: Mapping[str, str]


def join(parts: Sequence[Part], outputs: Mapping[str, str], *, channels: Mapping[str, int] | None = None) -> Any:
    """Parts in order -> the model of `data`; `outputs` are its outputs' names and where each comes from."""
    onnx = require("onnx")
    nodes: list[Any] = []
    tensors: list[Any] = []
    functions: list[Any] = []
    versions: dict[str, int] = {}
    for part in parts:
        prefix = f"{part.name}/"
        model = onnx.compose.add_prefix(part.model, prefix)
        for entry in model.opset_import:
            if versions.setdefault(entry.domain, entry.version) != entry.version:
                what = f"is of opset {entry.version}, another expert of {versions[entry.domain]}"
                raise Refusal(what, where=part.name, cure="export both by the same command")
        # A node that passes its input on, where a renaming would have to follow every use; runtimes remove it.
        nodes += [onnx.helper.make_node("Identity", [of], [prefix + to]) for to, of in part.sources.items()]
        nodes += model.graph.node
        tensors += model.graph.initializer
        functions += model.functions
    nodes += [onnx.helper.make_node("Identity", [source], [name]) for name, source in outputs.items()]
    channels = channels or {}
    float32 = onnx.TensorProto.FLOAT

    def image(name: str, count: int, rows: str, columns: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, float32, [1, count, rows, columns])

    graph = onnx.helper.make_graph(
        nodes,
        "championship_sr",
        [image(DATA, 3, "height", "width")],
        [
            image(name, channels[name], "height", "width")
            if name in channels
            else image(name, 3, "4*height", "4*width")
            for name in outputs
        ],
        initializer=tensors,
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]
    ir_version = max(part.model.ir_version for part in parts)
    joined = onnx.helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=ir_version)
    onnx.checker.check_model(joined)
    return joined


def describe(model: Any, document: Mapping[str, Any]) -> None:
    """Write what the graph is into its metadata, as JSON."""
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(document)
