"""LR, SR and HR folders -> one picture with the same crops side by side, and the figures that belong to it.

Axes: B batch, C colour, H, W; RGB float32 in [0, 1].
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from imaging.files import list_images, read_rgb, write_picture
from imaging.metrics import psnr, ssim
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic
from imaging.scale import SCALE, SCALES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

CROP = 160  # pixels, shown doubled: three panes side by side fit a screen of 1000
GAP = 8
LABEL_HEIGHT = 24
PANES = ("bicubic", "super-resolved", "truth")


@dataclass(frozen=True)
class Compared:
    """Figures of one image: Y-PSNR and Y-SSIM with 4 border pixels left out, for bicubic and for the SR image."""

    name: str
    bicubic_psnr: float
    psnr: float
    bicubic_ssim: float
    ssim: float


def compare_folders(lr: Path, sr: Path, hr: Path, picture: Path | None = None) -> list[Compared]:
    """Compare every SR image with its HR image; optionally draw one row of crops for each."""
    compared: list[Compared] = []
    rows: list[Tensor] = []
    low, high = _by_stem(lr), _by_stem(hr)
    for path in list_images(sr):
        stem = _stem(path)
        for by_stem, folder in ((low, lr), (high, hr)):
            if stem not in by_stem:
                raise Refusal(f"has no partner in {folder}", where=path, cure="give folders of the same images")
        truth_BCHW, sr_BCHW = read_rgb(high[stem]), read_rgb(path)
        lr_BCHW = read_rgb(low[stem])
        scale = _scale_of(lr_BCHW, truth_BCHW)
        bicubic_BCHW = resize_bicubic(lr_BCHW, scale=scale).clamp(0, 1)
        panes = (bicubic_BCHW, sr_BCHW, truth_BCHW)
        if len({pane.shape for pane in panes}) != 1:
            raise Refusal(
                f"is not {scale} times its LR image or not as large as its HR image", where=path, cure="pair them"
            )
        compared.append(
            Compared(
                stem,
                float(psnr(bicubic_BCHW, truth_BCHW)),
                float(psnr(sr_BCHW, truth_BCHW)),
                float(ssim(bicubic_BCHW, truth_BCHW)),
                float(ssim(sr_BCHW, truth_BCHW)),
            )
        )
        rows.append(_row(panes, compared[-1]))
    if picture is not None:
        write_picture(picture, _stacked(rows))
    return compared


def _row(panes: Sequence[Tensor], figures: Compared) -> Tensor:
    """Equal crops, doubled, with their labels: (1, 3, h, w)."""
    top, left = _most_detailed(panes[-1])
    values = (f"{figures.bicubic_psnr:.2f} dB", f"{figures.psnr:.2f} dB", figures.name)
    cells = []
    for pane_BCHW, name, value in zip(panes, PANES, values, strict=True):
        crop_BCHW = pane_BCHW[..., top : top + CROP, left : left + CROP]
        crop_BCHW = torch.nn.functional.interpolate(crop_BCHW, scale_factor=2, mode="nearest")
        cells.append(torch.cat([_label(f"{name}  {value}", crop_BCHW.shape[-1]), crop_BCHW], dim=-2))
    gap = torch.ones(1, 3, cells[0].shape[-2], GAP)
    return torch.cat([cells[0], gap, cells[1], gap, cells[2]], dim=-1)


def _most_detailed(rgb_BCHW: Tensor) -> tuple[int, int]:
    """Where the crop with the greatest local contrast lies, on a coarse grid."""
    height, width = rgb_BCHW.shape[-2:]
    grey = rgb_BCHW.mean(1, keepdim=True)
    contrast = (grey - torch.nn.functional.avg_pool2d(grey, 5, 1, 2)).abs()
    side = (min(CROP, height), min(CROP, width))
    sums = torch.nn.functional.avg_pool2d(contrast, side, stride=16)
    row, column = divmod(int(sums.flatten().argmax()), sums.shape[-1])
    return row * 16, column * 16


def _label(text: str, width: int) -> Tensor:
    """White strip with text: (1, 3, LABEL_HEIGHT, width)."""
    strip = np.full((LABEL_HEIGHT, width, 3), 255, dtype=np.uint8)
    text = text.encode("ascii", "backslashreplace").decode()  # OpenCV ends the process over text that is not Unicode
    cv2.putText(strip, text, (4, LABEL_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return torch.from_numpy(strip).permute(2, 0, 1)[None].float() / 255


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Rows under one another; narrower ones (small images) are filled up with white."""
    widest = max(row.shape[-1] for row in rows)
    filled = [torch.nn.functional.pad(row, (0, widest - row.shape[-1], 0, GAP), value=1.0) for row in rows]
    return torch.cat(filled, dim=-2)


def _scale_of(lr_BCHW: Tensor, truth_BCHW: Tensor) -> int:
    """By the sides; 4, which will not fit either, where they tell nothing."""
    fits = (scale for scale in SCALES if truth_BCHW.shape[-1] == scale * lr_BCHW.shape[-1])
    return next(fits, SCALE)


def _by_stem(folder: Path) -> dict[str, Path]:
    return {_stem(path): path for path in list_images(folder)}


def _stem(path: Path) -> str:
    """`baby.png`, `babyx4.png`, `babyx2.png` -> `baby`."""
    return re.sub(f"x[{min(SCALES)}-{max(SCALES)}]$", "", path.stem)
