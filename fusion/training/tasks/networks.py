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
    """How a network is built, the architecture name for its file's header, and what its scale's setting is called."""

    architecture: str
    build: Callable[..., nn.Module]
    scale_setting: str = "scale"


def find_kind(kinds: Mapping[str, NetworkKind], name: str) -> NetworkKind:
    """The kind of that name, or a refusal with the nearest one."""
    if name not in kinds:
        raise Refusal(f"unknown network '{name}'", where="network.name", cure=nearest(name, kinds))
    return kinds[name]


def build_network(kinds: Mapping[str, NetworkKind], settings: NetworkSettings, seed: int, scale: int = 4) -> nn.Module:
    """The named network of that scale, with seeded initial weights; settings that its constructor lacks are refused."""
    kind = find_kind(kinds, settings.name)
    wanted = {kind.scale_setting: scale, **_tuples(settings.settings)}
    if wanted[kind.scale_setting] != scale:
        raise Refusal(
            f"is {wanted[kind.scale_setting]}, the data's scale is {scale}",
            where=f"network.settings.{kind.scale_setting}",
            cure="set data.scale, and leave the network's out",
        )
    torch.manual_seed(initial_weights_seed(settings, seed))
    try:
        return kind.build(**wanted)
    except (TypeError, ValueError) as error:
        raise Refusal(f"cannot be built: {error}", where="network.settings", cure="correct that setting") from error


def initial_weights_seed(settings: NetworkSettings, seed: int) -> int:
    """The network's own seed where it has one, else the run's."""
    return seed if settings.seed is None else settings.seed


def _tuples(settings: dict[str, Any]) -> dict[str, Any]:
    """YAML has lists where constructors have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
