"""Experts' ONNX graphs and their fusion model -> one graph of the LR image: `data` -> `output`.

Each expert's padding rule is in its graph; images below the fusion's least size go on with their last pixel and are cut
back, as in `fuse_with`. Axes: B batch (1), E experts, C channels, H and W of the LR image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fusion.network.interface import SMALLEST
from imaging.onnx_graph.join import DATA, FEATURES, OUTPUT, Part, join
from imaging.onnx_graph.sides import PADDED, cutting_graph, mean_graph, padding_graph
from imaging.onnx_graph.trace import trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion.network import FusionSR

CELLS = (3, 4)  # of the traced image, in SMALLEST: any that differ


@dataclass(frozen=True)
class ExpertGraph:
    """One expert as `data` -> `output`, and `features` where it has channels of them."""

    name: str
    model: Any
    channels: int


class FusionGraph(nn.Module):
    """The LR image, the experts' images, then the features of those that have any -> the fused image."""

    def __init__(self, model: FusionSR, experts: Sequence[ExpertGraph]) -> None:
        super().__init__()
        self.model = model
        self._names = tuple(expert.name for expert in experts)
        self._featured = tuple(expert.name for expert in experts if expert.channels)

    def forward(self, lr_BCHW: Tensor, *answers: Tensor) -> Tensor:
        """(1, 3, H, W), E of (1, 3, sH, sW), some of (1, C, H, W) -> (1, 3, sH, sW)."""
        images, feats = answers[: len(self._names)], answers[len(self._names) :]
        by_name = dict(zip(self._featured, feats, strict=True))
        return self.model(lr_BCHW, torch.stack(images, 1), by_name, self._names).image_BCHW


def ensemble_graph(model: FusionSR | None, experts: Sequence[ExpertGraph]) -> Any:
    """All of it in one model; without a fusion model the plain mean."""
    parts = [Part(f"expert{index}", expert.model, {DATA: DATA}) for index, expert in enumerate(experts)]
    images = {f"sr{index}": f"expert{index}/{OUTPUT}" for index in range(len(experts))}
    if model is None:
        if len(experts) == 1:
            return join(parts, {OUTPUT: images["sr0"]})
        return join([*parts, Part("mean", mean_graph(list(images)), images)], {OUTPUT: f"mean/{OUTPUT}"})
    features = {f"feat{index}": f"expert{index}/{FEATURES}" for index, one in enumerate(experts) if one.channels}
    sources = {"lr": DATA, **images, **features}
    cells = {name: model.settings.scale if name in images else 1 for name in sources}
    for name, source in sources.items():
        parts.append(Part(f"long_{name}", padding_graph("edge", minimum=cells[name] * SMALLEST), {DATA: source}))
    graph = _fusion_graph(model, experts, cells)
    parts += [
        Part("fusion", graph, {name: f"long_{name}/{PADDED}" for name in sources}),
        Part("cut", cutting_graph(model.settings.scale), {"large": f"fusion/{OUTPUT}", DATA: DATA}),
    ]
    return join(parts, {OUTPUT: "cut/cut"})


def _fusion_graph(model: FusionSR, experts: Sequence[ExpertGraph], cells: dict[str, int]) -> Any:
    """The fusion alone."""
    channels = {"lr": 3, **{f"sr{index}": 3 for index in range(len(experts))}}
    channels |= {f"feat{index}": one.channels for index, one in enumerate(experts) if one.channels}
    height, width = (SMALLEST * count for count in CELLS)
    inputs = [torch.rand(1, channels[name], height * cell, width * cell) for name, cell in cells.items()]
    return trace(
        FusionGraph(model, experts),
        inputs,
        where="the fusion model",
        names=list(cells),
        outputs=[OUTPUT],
        cells=list(cells.values()),
        least=SMALLEST,
    )
