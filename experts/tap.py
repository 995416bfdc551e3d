"""A network and a layer's path -> the output of that layer during a forward; nothing stays behind on the network."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Generator


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
    """Listen to one layer for as long as the block lasts."""
    caught = Caught(path)
    handle = find_layer(network, path).register_forward_hook(lambda _layer, _inputs, output: caught.add(output))
    try:
        yield caught
    finally:
        handle.remove()


def layers_at_size(network: nn.Module, lr_BCHW: Tensor) -> list[tuple[str, int]]:
    """Run once and list (path, channels) of every layer that gives maps at the input's size: the possible taps."""
    found: dict[str, int] = {}
    handles = []

    def listen(path: str, output: object) -> None:
        if torch.is_tensor(output) and output.dim() == 4 and output.shape[-2:] == lr_BCHW.shape[-2:]:
            found[path] = output.shape[1]

    for path, layer in network.named_modules():
        if path:
            handles.append(layer.register_forward_hook(lambda _l, _i, output, path=path: listen(path, output)))
    try:
        with torch.no_grad():
            network(lr_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    return [(path, channels) for path, channels in found.items() if channels > 3]
