"""What loading a weights file gives, whether a known architecture or a user's own code built the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experts.call import NetworkCall, call_plainly
from imaging.scale import SCALE

if TYPE_CHECKING:
    from torch import nn

    from experts.spec import Padding


@dataclass(frozen=True)
class Recognised:
    """A network with a file's tensors, as the keys alone tell it: not yet held against what is wanted of it."""

    network: nn.Module
    architecture: str
    scale: int
    input_channels: int
    output_channels: int
    padding: Padding
    call: NetworkCall = call_plainly


@dataclass(frozen=True)
class LoadedNetwork:
    """A frozen network in eval mode and what is known of it.

    `call` runs it on an image in [0, 1]: a few (IPT, MMRealSR) take another range or give more than the image.
    `code` says which foreign code built it, if one did.
    """

    network: nn.Module
    architecture: str
    parameters: int
    padding: Padding
    call: NetworkCall = call_plainly
    code: str | None = None
    scale: int = SCALE


def key_trouble(error: BaseException) -> str:
    """torch's many lines about keys -> the first of them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) < 2:
        return lines[0] if lines else type(error).__name__
    return lines[1][:200]
