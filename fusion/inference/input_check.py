"""LR images -> a warning where they are no clean bicubic downscales, for which the experts were trained.

Three measures of the luma's central part, limits from docs/results/input_check.md (`python -m fusion calibrate-look`):
JPEG blocks, noise, blur. Axes: H and W of the luma in grey levels 0..255.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from imaging.files import read_raster
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

SMALLEST, LARGEST = 40, 512  # sides: too small to judge below; above, the middle part is enough
SAMPLED = 12  # images of a run that are checked
A_SET = 5  # images from which on their median is judged as well, more sharply
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Trouble:
    """A kind of damage: its limits, its name and what to do. `sign` +1: too high is bad; -1: too low is bad."""

    sign: int
    one: float  # limit for one image: no clean one of the benchmarks is beyond it
    typical: float  # limit for the median of `A_SET` or more
    what: str
    cure: str


TROUBLES = {
    "jpeg": Trouble(
        +1, 1.05, 1.02, "8x8 JPEG blocks", "use the uncompressed originals, or experts trained on compressed images"
    ),
    "noise": Trouble(+1, 6.2, 3.8, "noise", "denoise first, or use experts trained on noisy images"),
    "blur": Trouble(
        -1, -22.5, -21.0, "blur, or enlargement", "downscale to the true resolution first (python -m imaging downscale)"
    ),
}


def measures(luma_HW: np.ndarray) -> dict[str, float]:
    """The three figures of one image."""
    return {"jpeg": blockiness(luma_HW), "noise": noise_level(luma_HW), "blur": falloff(luma_HW)}


def blockiness(luma_HW: np.ndarray) -> float:
    """Steps across the JPEG grid over steps elsewhere, the lesser of both directions; about 0.95 without blocks."""
    ratios = []
    for along_HW in (luma_HW, luma_HW.T):
        steps_HW = np.minimum(np.abs(np.diff(along_HW, axis=1)), 20)  # true edges are larger and count no more
        phases = np.array([steps_HW[:, phase::8].mean() for phase in range(8)])
        ratios.append(phases[7] / (np.median(phases[:7]) + 0.25))
    return float(min(ratios))


def noise_level(luma_HW: np.ndarray) -> float:
    """Standard deviation of the noise in the flattest places: the diagonal Haar band's MAD in 4x4 blocks."""
    height, width = (side // 8 * 8 for side in luma_HW.shape)
    x = luma_HW[:height, :width]
    diagonal_HW = (x[::2, ::2] - x[1::2, ::2] - x[::2, 1::2] + x[1::2, 1::2]) / 2
    blocks = diagonal_HW.reshape(height // 8, 4, width // 8, 4).transpose(0, 2, 1, 3).reshape(-1, 16)
    return float(np.percentile(np.median(np.abs(blocks), axis=1) / 0.6745, 5))


def falloff(luma_HW: np.ndarray) -> float:
    """Power near the finest frequencies over that at middle ones, in dB."""
    height, width = luma_HW.shape
    window_HW = np.hanning(height)[:, None] * np.hanning(width)
    power_HW = np.abs(np.fft.fft2((luma_HW - luma_HW.mean()) * window_HW)) ** 2
    radius_HW = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    fine = power_HW[(radius_HW > 0.35) & (radius_HW < 0.5)].mean()
    middle = power_HW[(radius_HW > 0.08) & (radius_HW < 0.2)].mean()
    return float(10 * np.log10((fine + 1e-9) / (middle + 1e-9)))


def central_luma(levels_HWC: np.ndarray) -> np.ndarray | None:
    """Whole levels -> luma 0..255 of the middle, cut at a multiple of 8 (the JPEG grid); None if too little."""
    height, width = levels_HWC.shape[:2]
    if min(height, width) < SMALLEST:
        return None
    top, left = (max(0, side - LARGEST) // 16 * 8 for side in (height, width))
    part_HWC = levels_HWC[top : top + LARGEST, left : left + LARGEST].astype(np.float64)
    part_HWC *= 255 / np.iinfo(levels_HWC.dtype).max
    luma_HW = part_HWC[..., 0] if part_HWC.shape[-1] == 1 else part_HWC @ np.array(_LUMA)
    # Flat colour carries no trace of how the image was made.
    return luma_HW if luma_HW.std() > 1 else None


def judge(found: Sequence[dict[str, float]]) -> list[str]:
    """Measures of several images -> the kinds of trouble, by any image beyond doubt or by their median."""
    kinds: list[str] = []
    for kind, trouble in TROUBLES.items():
        values = [trouble.sign * one[kind] for one in found]
        beyond = any(value > trouble.sign * trouble.one for value in values)
        typical = len(values) >= A_SET and float(np.median(values)) > trouble.sign * trouble.typical
        if beyond or typical:
            kinds.append(kind)
    return kinds


def warn_about(paths: Sequence[Path]) -> list[str]:
    """Check up to `SAMPLED` images, evenly chosen; log each kind of damage, before hours of work."""
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, min(SAMPLED, len(paths))).astype(int)]
    found: dict[Path, dict[str, float]] = {}
    for path in chosen:
        try:
            luma_HW = central_luma(read_raster(path)[0].levels_HWC)
        except Refusal:
            continue  # the pipeline lists it as failed
        if luma_HW is not None:
            found[path] = measures(luma_HW)
    kinds = judge(list(found.values()))
    for kind in kinds:
        trouble = TROUBLES[kind]
        worst = max(found, key=lambda path: trouble.sign * found[path][kind])
        log.warning(
            "the inputs show %s (worst: %s); the experts were trained on clean bicubic downscales: %s",
            *(trouble.what, worst, trouble.cure),
        )
    return kinds
