"""An opened expert -> one ONNX model, its padding rule included: `data` -> `output`, and `features` where asked for.

Legend: B batch (1), C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experts.call import call_plainly, without_meshgrid_warning
from experts.export.hit_graph import followable_hit
from experts.export.native_graph import NativeGraph
from experts.native.base import NativeNetwork
from experts.native.hit import HiTSRF
from experts.spec import Padding
from experts.tap import as_maps, tapped
from imaging.onnx_graph.join import DATA, FEATURES, OUTPUT, Part, join
from imaging.onnx_graph.sides import PADDED, cutting_graph, padding_graph
from imaging.onnx_graph.trace import record, trace

if TYPE_CHECKING:
    from torch import Tensor

    from experts.run import NetworkExpert
    from experts.spec import Tap

CELLS = (3, 5)  # of the traced image's sides, where the network needs no more


class ImageGraph(nn.Module):
    """The network as it is called, on sides that it takes as they are; its features cut to the image."""

    def __init__(self, expert: NetworkExpert, tap: Tap | None) -> None:
        super().__init__()
        network, self._call, self._tap = expert.network, expert.call, tap
        if isinstance(network, NativeNetwork):
            self.body: nn.Module = NativeGraph(network)
            self._call = call_plainly
        else:
            self.body = followable_hit(network) if isinstance(network, HiTSRF) else network
        self._tapped = self.body.network if isinstance(self.body, NativeGraph) else self.body

    def forward(self, lr_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(1, 3, H, W) -> (1, 3, 4H, 4W), and (1, C, H, W) with a tap."""
        height, width = lr_BCHW.shape[-2:]
        if self._tap is None:
            return self._call(self.body, lr_BCHW)
        with tapped(self._tapped, self._tap.module) as caught:
            sr_BCHW = self._call(self.body, lr_BCHW)
        return sr_BCHW, as_maps(caught.take(), self._tap.layout, lr_BCHW)[..., :height, :width]


def expert_graph(expert: NetworkExpert, *, features: bool = False, by_recording: bool = False) -> Any:
    """The expert as an ONNX model; without a tap there are no features to ask for."""
    tap = expert.tap if features else None
    padding = expert.padding
    outputs = [OUTPUT] if tap is None else [OUTPUT, FEATURES]
    plain = padding == Padding(mode=padding.mode)
    least = -(-padding.minimum // padding.multiple)
    lr_BCHW = torch.rand(1, 3, *(padding.multiple * max(cells, least + cells) for cells in CELLS))
    module, where = ImageGraph(expert, tap), f"expert {expert.name}"
    with without_meshgrid_warning():
        if by_recording:
            network = record(module, [lr_BCHW], where=where, names=[DATA], outputs=outputs)
        else:
            cells = [padding.multiple]
            network = trace(module, [lr_BCHW], where=where, names=[DATA], outputs=outputs, cells=cells, least=least)
    if plain:
        parts = [Part("network", network, {DATA: DATA})]
        sources = {name: f"network/{name}" for name in outputs}
    else:
        parts = [
            Part("pad", padding_graph(**padding.model_dump()), {DATA: DATA}),
            Part("network", network, {DATA: f"pad/{PADDED}"}),
            *(
                Part(f"cut_{name}", cutting_graph(scale), {"large": f"network/{name}", DATA: DATA})
                for name, scale in zip(outputs, (expert.scale, 1), strict=False)
            ),
        ]
        sources = {name: f"cut_{name}/cut" for name in outputs}
    channels = {} if tap is None else {FEATURES: expert.identity.channels}
    return join(parts, sources, channels=channels)
