"""The kinds of network a run may name; train.py lists them, since this room knows no expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from fusion.training.settings import NetworkSettings


@dataclass(frozen=True)
class NetworkKind:
    """How a network is built from settings, and the architecture name that goes into its file's header."""

    architecture: str
    build: Callable[..., nn.Module]


def find_kind(kinds: Mapping[str, NetworkKind], name: str) -> NetworkKind:
    """The kind of that name, or a refusal with the nearest one."""
    if name not in kinds:
        raise Refusal(f"unknown network '{name}'", where="network.name", cure=nearest(name, kinds))
    return kinds[name]


def build_network(kinds: Mapping[str, NetworkKind], settings: NetworkSettings, seed: int) -> nn.Module:
    """The named network with seeded first weights; settings that its constructor does not take are refused."""
    kind = find_kind(kinds, settings.name)
    torch.manual_seed(first_weights_seed(settings, seed))
    try:
        return kind.build(**_tuples(settings.settings))
    except (TypeError, ValueError) as error:
        raise Refusal(f"cannot be built: {error}", where="network.settings", cure="correct that setting") from error


def first_weights_seed(settings: NetworkSettings, seed: int) -> int:
    """The network's own seed where it has one, else the run's."""
    return seed if settings.seed is None else settings.seed


def _tuples(settings: dict[str, Any]) -> dict[str, Any]:
    """YAML has lists where constructors have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
