"""Loss names -> how each is built and what file it needs; the only list of losses.

What a network or a task reports itself is not built here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion.training.losses import frequency, perceptual, pixel
from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import nn

    from fusion.training.losses.files import LossFile

# No comparisons of one image with its truth: the network (balance) or the task (the others) reports them.
REPORTED = frozenset({"balance", "flow", "texture", "mean"})


@dataclass(frozen=True)
class TrunkLoss:
    """A loss that is built from a file of trained weights."""

    build: Callable[[Path], nn.Module]
    file: LossFile


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "l1": pixel.L1,
    "mse": pixel.MSE,
    "charbonnier": pixel.Charbonnier,
    "ssim": pixel.SSIM,
    "swt": frequency.SWT,
    "fft": frequency.FFT,
    "edge": pixel.Edge,
    "flat": pixel.Flat,
}
TRUNKS: dict[str, TrunkLoss] = {
    "vgg": TrunkLoss(perceptual.VGG, perceptual.VGG_FILE),
    "clip": TrunkLoss(perceptual.CLIP, perceptual.CLIP_FILE),
    "lpips": TrunkLoss(perceptual.LPIPS, perceptual.LPIPS_FILE),
}


def build_losses(names: Iterable[str], weights: Mapping[str, Path]) -> dict[str, nn.Module]:
    """The named losses; every name and file is checked before the first is built."""
    wanted = sorted(set(names))
    known = {*PLAIN, *TRUNKS}
    for name in [*wanted, *weights]:
        if name not in known:
            raise Refusal(f"unknown loss '{name}'", where="stages", cure=nearest(name, known | REPORTED))
    files = {name: TRUNKS[name].file.find(name, weights.get(name)) for name in wanted if name in TRUNKS}
    return {name: TRUNKS[name].build(files[name]) if name in TRUNKS else PLAIN[name]() for name in wanted}
