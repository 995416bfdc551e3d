"""A network and an image -> what its layers gave during one forward, in order, and where its upsampler begins.

Legend: B batch, C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from experts.call import NetworkCall

IMAGE_CHANNELS = 3
# Calls that make new channels out of old ones. Going back from a pixel shuffle, the first of these is the layer that
# made its channels; all others (activations, additions, views) hand through what they were given.
MIXING = ("conv", "linear", "matmul", "bmm", "einsum", "norm", "attention", "softmax", "pool")
SHUFFLE = "pixel_shuffle"


@dataclass(frozen=True)
class Map:
    """One output of one layer: `order` counts all calls of the forward, `key` identifies the tensor."""

    path: str
    shape: tuple[int, ...]
    order: int
    key: int


@dataclass(frozen=True)
class _Call:
    name: str
    order: int
    inputs: tuple[Tensor, ...]
    output: Tensor


@dataclass(frozen=True)
class Upsampler:
    """Where the map first grows: the size before it, and the tensors that are its own, made only to be shuffled."""

    order: int
    size: tuple[int, int]
    expansion: frozenset[int]


@dataclass
class Trace:
    """One forward: every layer's output, and every torch function with the tensors that it read and gave."""

    layer_outputs: list[Map] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    alive: list[Tensor] = field(default_factory=list)  # an id is a tensor's own only while the tensor lives

    def runs_once(self, one: Map) -> bool:
        """Whether that layer ran once: one that is shared by several places has no single output."""
        return Counter(other.path for other in self.layer_outputs)[one.path] == 1

    def find_upsampler(self, lr_size: tuple[int, int]) -> Upsampler | None:
        """The first call that at least doubles a feature map of about LR size, on the way from features to image."""
        for call in self.calls:
            source = _grows_from(call, lr_size)
            if source is not None:
                size = (source.shape[-2], source.shape[-1])
                expansion = self._made_for(source, call.order) if SHUFFLE in call.name else frozenset()
                return Upsampler(call.order, size, frozenset(expansion))
        return None

    def _made_for(self, source: Tensor, before: int) -> set[int]:
        """Tensors between the layers that made the shuffled channels and the shuffle itself."""
        makers: dict[int, list[_Call]] = {}
        for call in self.calls:
            if call.order < before:
                makers.setdefault(id(call.output), []).append(call)
        found, pending = {id(source)}, [source]
        while pending:
            for call in makers.get(id(pending.pop()), []):
                if any(word in call.name for word in MIXING):
                    continue
                for tensor in call.inputs:
                    if id(tensor) not in found and id(tensor) in makers:
                        found.add(id(tensor))
                        pending.append(tensor)
        return found


def _grows_from(call: _Call, lr_size: tuple[int, int]) -> Tensor | None:
    """The LR feature map that this call enlarges. An image that is enlarged as a base for the output does not count."""
    height, width = lr_size
    grown = call.output.shape
    if len(grown) != 4 or grown[-2] < 2 * height or grown[-1] < 2 * width:
        return None
    for tensor in call.inputs:
        shape = tensor.shape
        if len(shape) != 4 or shape[1] <= IMAGE_CHANNELS or shape[0] != grown[0]:
            continue
        fits = height <= shape[-2] < 2 * height and width <= shape[-1] < 2 * width
        if fits and grown[-2] >= 2 * shape[-2] and grown[-1] >= 2 * shape[-1]:
            return tensor
    return None


class _Recorder(TorchFunctionMode):
    """Notes every torch function, also those that no layer stands for."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self.order = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the function and note it."""
        output = func(*args, **(kwargs or {}))
        self.order += 1
        inputs = tuple(_tensors([*args, *(kwargs or {}).values()]))
        for one in _tensors([output]):
            self.trace.calls.append(_Call(getattr(func, "__name__", ""), self.order, inputs, one))
        return output


def _tensors(values: list[Any] | tuple[Any, ...]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def trace_forward(network: nn.Module, lr_BCHW: Tensor, call: NetworkCall) -> Trace:
    """Run the network once and note what its layers and its functions gave; nothing stays on the network."""
    trace = Trace()
    recorder = _Recorder(trace)

    def note(path: str, output: object) -> None:
        if isinstance(output, Tensor):
            trace.layer_outputs.append(Map(path, tuple(output.shape), recorder.order, id(output)))
            trace.alive.append(output)

    handles = [
        layer.register_forward_hook(lambda _layer, _inputs, output, path=path: note(path, output))
        for path, layer in network.named_modules()
        if path
    ]
    try:
        with torch.no_grad(), recorder:
            call(network, lr_BCHW.clone())
    finally:
        for handle in handles:
            handle.remove()
    return trace
