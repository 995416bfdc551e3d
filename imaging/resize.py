"""rgb_BCHW float at any size -> the same at another, by antialiased bicubic interpolation as MATLAB's `imresize`.

Keys' cubic with a = -0.5, widened by 1/scale when shrinking, pixel centres aligned. Beyond the edge the last pixel
goes on ("replicate", as the benchmarks' LR files have it: see docs/results/resize.md) or, as in later releases of
MATLAB, the image is mirrored ("mirror"); the two differ in the outermost two pixels of an LR image only.
Differentiable, any device; half precisions are computed in float32. Axes: B batch, C channels, H height, W width;
I input pixels along one axis, O output pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imaging.layers import at_least_float32
from imaging.quantize import quantize_u8
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Edge = Literal["replicate", "mirror"]

_CHUNK = 32  # output pixels per matrix product: long enough to be fast, short enough that few of its weights are zero


def resize_bicubic(
    x_BCHW: Tensor, *, size: tuple[int, int] | None = None, scale: float | None = None, edge: Edge = "replicate"
) -> Tensor:
    """Resize to `size` (height, width), or by `scale` to ceil(side * scale), in the input's dtype and range.

    Overshoots beyond [0, 1] are kept: clamping happens when a file is written.
    """
    if (size is None) == (scale is None):
        raise ValueError("give either size or scale")
    if x_BCHW.ndim != 4 or not x_BCHW.is_floating_point() or 0 in x_BCHW.shape:
        raise ValueError(f"expected a float image (B,C,H,W), got {x_BCHW.dtype} {tuple(x_BCHW.shape)}")
    height, width = x_BCHW.shape[-2:]
    if scale is not None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be positive, got {scale}")
        target, scales = (_scaled(height, scale), _scaled(width, scale)), (scale, scale)
    else:
        assert size is not None
        if min(size) < 1:
            raise ValueError(f"size must be at least 1x1, got {size}")
        target, scales = size, (size[0] / height, size[1] / width)
    wide = at_least_float32(x_BCHW)
    rows = _along_rows(wide, target[0], scales[0], edge)
    both = _along_rows(rows.transpose(-1, -2), target[1], scales[1], edge).transpose(-1, -2)
    return both.to(x_BCHW.dtype).contiguous()


def enlarge_bicubic(lr_BCHW: Tensor, scale: int = SCALE) -> Tensor:
    """Bicubic enlargement in float32, equal to `resize_bicubic`'s; in one operation, whatever autocast."""
    beyond = 2  # pixels that a cubic uses to either side; the edge pixel is repeated there
    wide_BCHW = F.pad(lr_BCHW.float(), (beyond, beyond, beyond, beyond), mode="replicate")
    # antialias changes nothing when enlarging, but chooses the cubic (a = -0.5) that images are shrunk with.
    large_BCHW = F.interpolate(wide_BCHW, scale_factor=scale, mode="bicubic", align_corners=False, antialias=True)
    cut = beyond * scale
    return large_BCHW[..., cut:-cut, cut:-cut]


def resize_bands(
    bands_CHW: Iterable[Tensor], source: tuple[int, int], size: tuple[int, int], *, edge: Edge = "replicate"
) -> Iterator[Tensor]:
    """Rows of an image of `source` (height, width), top to bottom -> rows of the image at `size`, as of the whole up to
    the order of sums; held are only the rows that the next ones need.
    """
    scale = size[0] / source[0]
    if size[0] == source[0]:
        resized: Iterable[Tensor] = bands_CHW
    else:
        resized = _stream_rows(bands_CHW, _matrices(source[0], size[0], scale, edge))
    for rows_CHW in resized:
        yield _along_rows(rows_CHW.transpose(-1, -2), size[1], size[1] / source[1], edge).transpose(-1, -2)


def _stream_rows(bands_CHW: Iterable[Tensor], matrices: Sequence[tuple[int, Tensor]]) -> Iterator[Tensor]:
    """Each matrix times its rows as soon as these are there; rows above all later ones are let go."""
    bands = iter(bands_CHW)
    held_CHW, top = next(bands), 0
    for first, weights_OI in matrices:
        held_CHW, top = held_CHW[..., max(0, first - top) :, :], max(first, top)
        while top + held_CHW.shape[-2] < first + weights_OI.shape[1]:
            held_CHW = torch.cat([held_CHW, next(bands)], dim=-2)
            held_CHW, top = held_CHW[..., max(0, first - top) :, :], max(first, top)
        inputs = held_CHW[..., first - top : first - top + weights_OI.shape[1], :]
        yield torch.matmul(weights_OI.to(inputs), inputs)
    for _ in bands:  # the last rows may be further down than the last output row sees
        pass


def downscale(hr_BCHW: Tensor, factor: int = SCALE, *, edge: Edge = "replicate") -> Tensor:
    """The low-resolution image of `hr_BCHW`, whose sides must be multiples of `factor`: smooth, never rounded."""
    height, width = _divided(hr_BCHW, factor)
    return resize_bicubic(hr_BCHW, size=(height, width), edge=edge)


def downscale_8bit(hr_BCHW: Tensor, factor: int = SCALE, *, edge: Edge = "replicate") -> Tensor:
    """The low-resolution 8-bit file that MATLAB makes of 8-bit `hr_BCHW`, in [0, 1]: for making training images.

    MATLAB keeps uint8 between its two passes (rows first), so the image is clamped and rounded twice.
    """
    height, width = _divided(hr_BCHW, factor)
    half = resize_bicubic(hr_BCHW.double(), size=(height, hr_BCHW.shape[-1]), edge=edge)
    both = resize_bicubic(quantize_u8(half).double() / 255, size=(height, width), edge=edge)
    return quantize_u8(both).to(hr_BCHW.dtype) / 255


def crop_to_multiple(hr_BCHW: Tensor, factor: int = SCALE) -> Tensor:
    """Cut the right and lower edge so that both sides are multiples of `factor`."""
    height, width = (side - side % factor for side in hr_BCHW.shape[-2:])
    if height == 0 or width == 0:
        raise ValueError(f"{tuple(hr_BCHW.shape[-2:])} is smaller than {factor} pixels")
    return hr_BCHW[..., :height, :width]


def _divided(hr_BCHW: Tensor, factor: int) -> tuple[int, int]:
    height, width = hr_BCHW.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"{height}x{width} is not a multiple of {factor}: use crop_to_multiple first")
    return height // factor, width // factor


def _scaled(side: int, scale: float) -> int:
    # 300 * (1/3) is a hair above 100 in floating point; that must not add a pixel.
    return max(1, math.ceil(round(side * scale, 9)))


def _along_rows(x_BCHW: Tensor, target: int, scale: float, edge: Edge) -> Tensor:
    """Resize the H axis: each run of output rows is a small matrix times the input rows it uses."""
    if target == x_BCHW.shape[-2] and scale == 1:
        return x_BCHW
    parts = []
    for first_row, weights_OI in _matrices(x_BCHW.shape[-2], target, scale, edge):
        inputs = x_BCHW[..., first_row : first_row + weights_OI.shape[1], :]
        parts.append(torch.matmul(weights_OI.to(x_BCHW), inputs))
    return torch.cat(parts, dim=-2)


@lru_cache(maxsize=64)  # tiles and training crops repeat a few sizes, and the matrices take longer than the products
def _matrices(length: int, target: int, scale: float, edge: Edge) -> tuple[tuple[int, Tensor], ...]:
    """For each run of outputs: (first input pixel it uses, float64 weights_OI over the pixels from there on)."""
    index_OT, weight_OT = _taps(length, target, scale, edge)
    runs = []
    for start in range(0, target, _CHUNK):
        index, weight = index_OT[start : start + _CHUNK], weight_OT[start : start + _CHUNK]
        first = int(index.min())
        weights_OI = np.zeros((len(index), int(index.max()) - first + 1))
        np.add.at(weights_OI, (np.arange(len(index))[:, None], index - first), weight)
        runs.append((first, torch.from_numpy(weights_OI)))
    return tuple(runs)


def _taps(length: int, target: int, scale: float, edge: Edge) -> tuple[np.ndarray, np.ndarray]:
    """For each output pixel the input pixels it is made of, and their weights (sum 1)."""
    widening = min(scale, 1.0)  # below 1 the kernel stretches: this is the antialiasing
    support = 4 / widening
    centre_O = (np.arange(target) + 0.5) / scale - 0.5
    first_O = np.floor(centre_O - support / 2).astype(np.int64)
    # Two taps more than the support: it may begin anywhere within a pixel; those outside it get weight 0.
    index_OT = first_O[:, None] + np.arange(math.ceil(support) + 2)
    weight_OT = _cubic((centre_O[:, None] - index_OT) * widening)
    weight_OT /= weight_OT.sum(axis=1, keepdims=True)
    if edge == "replicate":
        return index_OT.clip(0, length - 1), weight_OT
    mirrored_OT = np.mod(index_OT, 2 * length)
    return np.where(mirrored_OT < length, mirrored_OT, 2 * length - 1 - mirrored_OT), weight_OT


def _cubic(t: np.ndarray) -> np.ndarray:
    """Keys' convolution kernel (1981) with a = -0.5."""
    a, d = -0.5, np.abs(t)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
