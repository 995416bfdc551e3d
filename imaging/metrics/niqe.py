"""rgb_BCHW in [0, 1] -> NIQE of each image (Mittal, Soundararajan, Bovik 2013): how unnatural its statistics are.

No truth is needed; lower is better. The statistics of natural images are a local file of 36 means and their covariance,
as BasicSR ships it: `niqe_pris_params.npz`. Steps and constants are the original MATLAB code's.
Axes: B batch, C channels, H and W, N blocks, F features (36).
"""

from __future__ import annotations

import math
import zipfile
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from imaging.metrics.fidelity import luma
from imaging.paths import pretrained_folder, pretrained_folders
from imaging.quantize import quantize_u8
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

STATISTICS_FILE = "niqe_pris_params.npz"
_CURE = (
    f"put BasicSR's {STATISTICS_FILE} (https://github.com/XPixelGroup/BasicSR/tree/master/basicsr/metrics) "
    "into pretrained/metrics/"
)
_BLOCK = 96  # pixels a side at full size, half of it at half size
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # of the neighbour that a pixel is multiplied by
_WINDOW, _SIGMA = 7, 7 / 6


def find_statistics() -> Path:
    """The file in `metrics/` of a folder of weights; or refused with its place."""
    for folder in pretrained_folders():
        path = folder / "metrics" / STATISTICS_FILE
        if path.is_file():
            return path
    place = pretrained_folder() / "metrics" / STATISTICS_FILE
    raise Refusal("the statistics that NIQE needs are missing", where=place, cure=_CURE)


def niqe(rgb_BCHW: Tensor, *, statistics: Path | None = None, border: int = 0) -> Tensor:
    """One float64 per image, on 8-bit values and the rounded luma of them; at least two blocks of 96 pixels."""
    mean_F, covariance_FF = _natural(statistics or find_statistics())
    luma_B1HW = (luma(quantize_u8(rgb_BCHW).double() / 255) * 255).round()
    if border:
        luma_B1HW = luma_B1HW[..., border:-border, border:-border]
    height, width = (side // _BLOCK * _BLOCK for side in luma_B1HW.shape[-2:])
    if height * width < 2 * _BLOCK**2:
        raise Refusal(f"{tuple(luma_B1HW.shape[-2:])} pixels are too few", where="NIQE", cure="leave the image out")
    distances = [_distance(one[None], mean_F, covariance_FF) for one in luma_B1HW[..., :height, :width]]
    return torch.tensor(distances, dtype=torch.float64)


def _distance(luma_11HW: Tensor, mean_F: np.ndarray, covariance_FF: np.ndarray) -> float:
    features_NF = np.concatenate(
        [
            _features(luma_11HW, _BLOCK),
            # MATLAB's imresize mirrors at the edge.
            _features(resize_bicubic(luma_11HW, scale=0.5, edge="mirror"), _BLOCK // 2),
        ],
        axis=1,
    )
    whole_NF = features_NF[~np.isnan(features_NF).any(axis=1)]  # a block of one level has no distribution
    away_F = mean_F - np.nanmean(features_NF, axis=0)
    inverse_FF = np.linalg.pinv((covariance_FF + np.cov(whole_NF, rowvar=False)) / 2)
    return math.sqrt(float(away_F @ inverse_FF @ away_F))


def _features(luma_11HW: Tensor, block: int) -> np.ndarray:
    """(N, 18): block by block, of the locally normalized luma."""
    normal_HW = _normalized(luma_11HW)[0, 0].numpy()
    height, width = normal_HW.shape
    return np.array(
        [
            _of_block(normal_HW[top : top + block, left : left + block])
            for left in range(0, width - block + 1, block)
            for top in range(0, height - block + 1, block)
        ]
    )


def _normalized(luma_11HW: Tensor) -> Tensor:
    position = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-(position**2) / (2 * _SIGMA**2))
    window = window / window.sum()

    def smooth(x_11HW: Tensor) -> Tensor:
        padded = F.pad(x_11HW, (_WINDOW // 2,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(padded, window[None, None, :, None]), window[None, None, None, :])

    mean_11HW = smooth(luma_11HW)
    spread_11HW = (smooth(luma_11HW**2) - mean_11HW**2).abs().sqrt()
    return (luma_11HW - mean_11HW) / (spread_11HW + 1)


def _of_block(block_HW: np.ndarray) -> list[float]:
    shape, left, right = _asymmetric_gaussian(block_HW)
    found = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _asymmetric_gaussian(block_HW * np.roll(block_HW, shift, axis=(0, 1)))
        mean = (right - left) * math.gamma(2 / shape) / math.gamma(1 / shape)
        found += [shape, mean, left, right]
    return found


def _asymmetric_gaussian(values: np.ndarray) -> tuple[float, float, float]:
    """Shape and both scales of the generalized Gaussian that has these values' moments."""
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (
            math.sqrt(np.mean(half**2)) if len(half) else math.nan for half in (values[values < 0], values[values > 0])
        )
        ratio = left / right if right else math.nan
        peak = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted = peak * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, peaks = _table()
    shape = float(shapes[np.argmin((peaks - wanted) ** 2)])
    scale = math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
    return shape, left * scale, right * scale


@lru_cache(maxsize=1)
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Shapes, and what mean absolute value squared over mean square is for each."""
    shapes = np.arange(0.2, 10.001, 0.001)
    peaks = [math.gamma(2 / one) ** 2 / (math.gamma(1 / one) * math.gamma(3 / one)) for one in shapes]
    return shapes, np.array(peaks)


@lru_cache(maxsize=2)
def _natural(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["mu_pris_param"].ravel(), file["cov_pris_param"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Refusal(f"holds no statistics ({error})", where=path, cure=_CURE) from None
