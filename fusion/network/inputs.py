"""What a caller hands to the network -> the names present and their features, or a refusal that says what is wrong.

Axes: B batch, E experts, C channels, H and W of the LR image (times 4 for the experts' images).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion.network.parts import SCALE
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from fusion.network.settings import FusionSettings

SMALLEST = 8


def check_inputs(
    settings: FusionSettings,
    lr_BCHW: Tensor,
    sr_BECHW: Tensor,
    feats: Mapping[str, Tensor | None] | None,
    experts: Sequence[str] | None,
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """The experts' names, and the features of those present that have any."""
    names = tuple(settings.names if experts is None else experts)
    if not names or len(set(names)) != len(names):
        raise Refusal(f"experts {names} must be named, each once", where="fusion", cure="give those that ran")
    for name in names:
        settings.index_of(name)
    _check_images(lr_BCHW, sr_BECHW, names)
    present: dict[str, Tensor] = {}
    for name in names:
        feat = feats.get(name) if feats is not None else None
        if feat is None or not settings.channels_of(name):
            continue
        expected = (lr_BCHW.shape[0], settings.channels_of(name), *lr_BCHW.shape[-2:])
        if tuple(feat.shape) != expected:
            raise _wrong(f"features are {tuple(feat.shape)}, not {expected}", f"expert {name}")
        present[name] = feat
    return names, present


def _check_images(lr_BCHW: Tensor, sr_BECHW: Tensor, names: tuple[str, ...]) -> None:
    if lr_BCHW.ndim != 4 or lr_BCHW.shape[1] != 3 or not lr_BCHW.is_floating_point():
        raise _wrong(f"the LR image is {lr_BCHW.dtype} {tuple(lr_BCHW.shape)}, not floats (B, 3, H, W)", "fusion")
    batch, _, height, width = lr_BCHW.shape
    if min(height, width) < SMALLEST:
        raise _wrong(f"the LR image is {height}x{width}, smaller than {SMALLEST}x{SMALLEST}", "fusion")
    expected = (batch, len(names), 3, SCALE * height, SCALE * width)
    if tuple(sr_BECHW.shape) != expected:
        raise _wrong(f"the experts' images are {tuple(sr_BECHW.shape)}, not {expected}", "fusion")


def _wrong(what: str, where: str) -> Refusal:
    return Refusal(what, where=where, cure="give each expert's output on this very LR image")
