"""A blend (B, 3, sH, sW) and its LR image -> the blend, pulled to where its downscale is the LR image.

The LR image is the antialiased bicubic downscale of the truth, rounded and clipped to 8 bits. Where it is clipped it
bounds the truth from one side only. Beyond the outermost LR pixels nothing is known, so the residual is zero there: a
tile's inside does not depend on where the tile was cut.
Axes: B batch, C = 3, s the experts' scale, H and W of the LR image. Images are floats in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.network.parts import repeat_edges
from imaging.layers import at_least_float32
from imaging.resize import downscale
from imaging.scale import SCALE, SCALES

RING = 1  # LR pixels along the edges whose downscale would depend on what lies outside the picture


def reach_of(scale: int) -> int:
    """HR pixels by which an LR pixel's kernel reaches beyond those under it, on either side: 6 of four times."""
    return 3 * scale // 2


def back_project(image_BCHW: Tensor, lr_BCHW: Tensor, strength: float, scale: int = SCALE) -> Tensor:
    """(B, 3, sH, sW), (B, 3, H, W) -> the image plus `strength` times its enlarged LR residual."""
    if not strength:
        return image_BCHW
    pull_BCHW = enlarge(missing(image_BCHW, lr_BCHW, scale), scale)
    return image_BCHW + strength * pull_BCHW.to(image_BCHW.dtype)


def missing(image_BCHW: Tensor, lr_BCHW: Tensor, scale: int = SCALE) -> Tensor:
    """The LR residual: the LR image minus the image's downscale, (B, 3, H, W); float32 or better."""
    with torch.autocast(image_BCHW.device.type, enabled=False):
        lr_BCHW = at_least_float32(lr_BCHW)
        lack_BCHW = lr_BCHW - shrink(at_least_float32(image_BCHW), scale)
    # At 0 the truth may lie below, at 1 above: a residual towards the outside is no error.
    lack_BCHW = torch.where(lr_BCHW <= 0, lack_BCHW.clamp(max=0), lack_BCHW)
    lack_BCHW = torch.where(lr_BCHW >= 1, lack_BCHW.clamp(min=0), lack_BCHW)
    return within_ring(lack_BCHW)


def shrink(image_BCHW: Tensor, scale: int = SCALE) -> Tensor:
    """imaging.resize.downscale by the scale as two strided convolutions: as right, faster, and compilable."""
    planes_1XHW = repeat_edges(image_BCHW, reach_of(scale)).flatten(0, 1).unsqueeze(0)
    planes = planes_1XHW.shape[1]
    kernel_T = _KERNELS[scale].to(image_BCHW)
    rows = F.conv2d(
        planes_1XHW, kernel_T[None, None, :, None].expand(planes, -1, -1, -1), stride=(scale, 1), groups=planes
    )
    both = F.conv2d(rows, kernel_T[None, None, None, :].expand(planes, -1, -1, -1), stride=(1, scale), groups=planes)
    return both.reshape(*image_BCHW.shape[:2], *both.shape[-2:])


def certain(lr_BCHW: Tensor) -> Tensor:
    """1 where the LR image binds the truth from both sides, else 0."""
    inside = (lr_BCHW > 0) & (lr_BCHW < 1)
    return within_ring(at_least_float32(inside))


def within_ring(x_BCHW: Tensor) -> Tensor:
    """Zeros along the edges."""
    return F.pad(x_BCHW[..., RING:-RING, RING:-RING], (RING,) * 4)


def enlarge(x_BCHW: Tensor, scale: int = SCALE) -> Tensor:
    """(B, 3, H, W) -> (B, 3, sH, sW), bicubic."""
    return F.interpolate(x_BCHW, scale_factor=scale, mode="bicubic", align_corners=False)


def _kernel(scale: int) -> Tensor:
    """The weights (T,), float64, of the HR pixels that the middle one of seven LR pixels is made of, along one axis."""
    middle, side = 3, 7 * scale
    lit = torch.eye(side, dtype=torch.float64)[:, None, :, None].expand(-1, -1, -1, scale)
    weights_I = downscale(lit, scale)[:, 0, middle, 0]
    return weights_I[middle * scale - reach_of(scale) : (middle + 1) * scale + reach_of(scale)].clone()


# All of them here, since torch.compile follows no cache that fills later.
_KERNELS = {scale: _kernel(scale) for scale in SCALES}
