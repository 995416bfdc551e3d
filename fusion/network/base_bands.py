"""Images (N, C, H, W), float, high resolution -> three bands for the base, coarse to fine, which sum to them.

Gaussian low-passes: the bands of a sum are the sums of the bands, so that a blend may be split after blending.
Axes: N images, C channels, H and W of the high-resolution image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion.network.parts import gaussian_blur

if TYPE_CHECKING:
    from torch import Tensor

BAND_NAMES = ("low", "mid", "high")
_SIGMAS = (3.0, 1.0)  # in HR pixels: below sigma 3 is the low band, above sigma 1 the high one


def split_bands(image_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Low, mid and high."""
    coarse, fine = (blur(image_NCHW, sigma) for sigma in _SIGMAS)
    return coarse, fine - coarse, image_NCHW - fine


def blur(image_NCHW: Tensor, sigma: float) -> Tensor:
    """Gaussian of `sigma` pixels, cut at three sigmas."""
    return gaussian_blur(image_NCHW, sigma, radius=int(3 * sigma))
