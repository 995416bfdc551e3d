"""A network and a layer's path -> the output of that layer during a forward; nothing stays behind on the network."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from experts.call import NetworkCall, call_plainly
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from experts.spec import Layout


class Caught:
    """What a tap caught: exactly one tensor per forward, or an error."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._outputs: list[Tensor] = []

    def add(self, output: object) -> None:
        """Keep a copy: networks add the long residual in place, which would change what was caught."""
        if not torch.is_tensor(output):
            raise Refusal(
                f"gives a {type(output).__name__}, not a tensor", where=f"tap {self.path}", cure="tap another layer"
            )
        self._outputs.append(output.clone())

    def take(self) -> Tensor:
        """The one tensor of the last forward; a tap that did not fire, or fired twice, is refused."""
        fired, self._outputs = self._outputs, []
        if len(fired) != 1:
            how_often = "did not fire" if not fired else f"fired {len(fired)} times"
            raise Refusal(
                f"{how_often} during the forward", where=f"tap {self.path}", cure="tap a layer that runs once"
            )
        return fired[0]


def find_layer(network: nn.Module, path: str) -> nn.Module:
    """A dotted path -> the layer; `body.-1` counts from the end of a sequence."""
    layer = network
    for part in path.split("."):
        children = dict(layer.named_children())
        if part.startswith("-") and part[1:].isdigit() and int(part[1:]) <= len(children):
            layer = list(children.values())[int(part)]
        elif part in children:
            layer = children[part]
        else:
            has = ", ".join(list(children)[-8:]) or "nothing"
            raise Refusal(f"the network has no layer '{part}' there", where=f"tap {path}", cure=f"there is: {has}")
    return layer


@contextmanager
def tapped(network: nn.Module, path: str) -> Generator[Caught]:
    """Catch the output of one layer for as long as the block lasts."""
    caught = Caught(path)
    handle = find_layer(network, path).register_forward_hook(lambda _layer, _inputs, output: caught.add(output))
    try:
        yield caught
    finally:
        handle.remove()


def caught_outputs(
    network: nn.Module, paths: Sequence[str], lr_BCHW: Tensor, call: NetworkCall = call_plainly
) -> dict[str, Tensor]:
    """Run once and return the outputs of several layers."""
    with ExitStack() as stack:
        caught = {path: stack.enter_context(tapped(network, path)) for path in paths}
        call(network, lr_BCHW.clone())  # some networks scale their input in place
        return {path: one.take() for path, one in caught.items()}


def as_maps(output: Tensor, layout: Layout, lr_BCHW: Tensor) -> Tensor:
    """A layer's output in its own layout -> (B, C, H, W); one that does not fit the layout comes back as it is."""
    if layout == "BHWC" and output.dim() == 4:
        return output.permute(0, 3, 1, 2)
    height, width = lr_BCHW.shape[-2:]
    if layout == "BNC" and output.dim() == 3 and output.shape[1] == height * width:
        return output.transpose(1, 2).unflatten(2, (height, width))
    return output
