"""A file's keys -> which of the networks implemented here it is, and the network its tensors imply.

What spandrel's `Architecture` does for all others, and without spandrel: importing that takes two seconds, with all of
torchvision, and the default needs none of it.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

Tensors = dict[str, Any]  # as a file names them


class _WithHyperparameters(Protocol):
    hyperparameters: dict[str, Any]


Kind = TypeVar("Kind", bound=_WithHyperparameters)


def stores_hyperparameters(kind: type[Kind]) -> type[Kind]:
    """Of a class whose arguments are keywords alone: `hyperparameters` holds them, as in spandrel's networks."""
    initialise = kind.__init__
    parameters = inspect.signature(initialise).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}

    @functools.wraps(initialise)
    def remember(self: Kind, **settings: Any) -> None:
        self.hyperparameters = {**defaults, **settings}
        initialise(self, **settings)

    kind.__init__ = remember
    return kind


@dataclass(frozen=True)
class Built:
    """A network with random weights still, and the tensors under its own names."""

    network: nn.Module
    tensors: Tensors
    scale: int
    input_channels: int = 3
    output_channels: int = 3
    multiple: int = 1  # of which the sides of an image must be


@dataclass(frozen=True)
class OwnArchitecture:
    """`layouts`: the keys that tell a file of this network, one set for each way in which it is published."""

    name: str
    layouts: tuple[frozenset[str], ...]
    build: Callable[[Tensors], Built]

    def matches(self, tensors: Mapping[str, object]) -> bool:
        """Whether all keys of a layout are there, as they stand."""
        return any(layout <= tensors.keys() for layout in self.layouts)


def sequence_length(tensors: Mapping[str, object], prefix: str) -> int:
    """How many layers `prefix.0`, `prefix.1` ... have tensors, by the last of them."""
    start = prefix + "."
    places = [int(key.removeprefix(start).partition(".")[0]) for key in tensors if key.startswith(start)]
    return max(places, default=-1) + 1
