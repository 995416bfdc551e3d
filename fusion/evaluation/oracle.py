"""Experts' images and the truth -> the best selection or mixture of experts given the truth: upper bounds.

Legend: E experts, C = 3 colours, H and W height and width (HR), N windows, M pixels of a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 300


def best_per_pixel(sr_ECHW: Tensor, hr_CHW: Tensor) -> Tensor:
    """At every pixel the expert of least squared error. Mostly fits noise: a bound, not a goal."""
    error_EHW = (sr_ECHW - hr_CHW).square().sum(1)
    chosen_1CHW = error_EHW.argmin(0)[None, None].expand(1, *sr_ECHW.shape[1:])
    return sr_ECHW.gather(0, chosen_1CHW)[0]


def best_per_window(sr_ECHW: Tensor, hr_CHW: Tensor, size: int) -> Tensor:
    """In every window of size x size the expert of least squared error."""
    error_EHW = (sr_ECHW - hr_CHW).square().sum(1)
    sums_EYX = F.avg_pool2d(_padded(error_EHW[None], size), size)[0]
    chosen_HW = sums_EYX.argmin(0).repeat_interleave(size, 0).repeat_interleave(size, 1)
    height, width = hr_CHW.shape[-2:]
    chosen_1CHW = chosen_HW[:height, :width][None, None].expand(1, *sr_ECHW.shape[1:])
    return sr_ECHW.gather(0, chosen_1CHW)[0]


def best_mix_per_window(sr_ECHW: Tensor, hr_CHW: Tensor, size: int) -> Tensor:
    """In every window the convex weights (none negative, sum 1) of least squared error."""
    height, width = hr_CHW.shape[-2:]
    errors = _padded((sr_ECHW - hr_CHW).double(), size)
    rows, columns = errors.shape[-2] // size, errors.shape[-1] // size
    errors_NEM = (
        errors.unflatten(3, (columns, size))
        .unflatten(2, (rows, size))
        .permute(2, 4, 0, 1, 3, 5)
        .flatten(3)
        .flatten(0, 1)
    )
    weights_NE = convex_weights(errors_NEM @ errors_NEM.transpose(1, 2))
    weights_EYX = weights_NE.T.unflatten(1, (rows, columns)).to(sr_ECHW.dtype)
    weights_EHW = weights_EYX.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :height, :width]
    return (weights_EHW[:, None] * sr_ECHW).sum(0)


def convex_weights(gram_NEE: Tensor) -> Tensor:
    """Minimise w'Gw over the simplex for each N, by accelerated projected gradient."""
    count = gram_NEE.shape[-1]
    longest_N11 = gram_NEE.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-12)[:, None, None]
    gram_NEE = gram_NEE / longest_N11  # the trace bounds the largest eigenvalue: step 1 is safe
    now = ahead = torch.full(gram_NEE.shape[:2], 1 / count, dtype=gram_NEE.dtype)
    for step in range(_STEPS):
        following = project_to_simplex(ahead - (gram_NEE @ ahead[..., None])[..., 0])
        ahead = following + step / (step + 3) * (following - now)
        now = following
    return now


def project_to_simplex(point_NE: Tensor) -> Tensor:
    """The nearest point with no negative entry and sum 1 (Duchi et al. 2008)."""
    ordered_NE = point_NE.sort(dim=1, descending=True).values
    excess_NE = ordered_NE.cumsum(1) - 1
    ranks_E = torch.arange(1, point_NE.shape[1] + 1, dtype=point_NE.dtype)
    kept_N1 = (ordered_NE * ranks_E > excess_NE).sum(1, keepdim=True)
    return (point_NE - excess_NE.gather(1, kept_N1 - 1) / kept_N1).clamp_min(0)


def _padded(images: Tensor, size: int) -> Tensor:
    """Zeros to the right and below up to a multiple of the window: they add nothing to a sum of errors."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % size, 0, -height % size))
