"""An image file -> its whole levels, a quarter of the memory of floats, cut into float windows on demand.

Axes: B batch (1), C colour, H and W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from imaging.files import TRANSPARENT, read_metadata, read_raster
from imaging.hashes import file_sha256
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic
from imaging.scale import SCALE

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from imaging.files import Depth, Metadata

Rgb = tuple[int, int, int]
_CONTEXT = 4  # LR pixels that bicubic interpolation sees beyond a band; 2 would do


@dataclass(frozen=True)
class Source:
    """One image, read: levels_HWC of one (grey) or three colours, alpha_HW or None, in uint8 or uint16."""

    path: Path
    levels_HWC: np.ndarray
    alpha_HW: np.ndarray | None
    icc: bytes | None
    sha256: str

    @property
    def height(self) -> int:
        """In LR pixels."""
        return self.levels_HWC.shape[0]

    @property
    def width(self) -> int:
        """In LR pixels."""
        return self.levels_HWC.shape[1]

    @property
    def depth(self) -> Depth:
        """Bits per channel."""
        return 16 if self.levels_HWC.dtype == np.uint16 else 8

    @property
    def grey(self) -> bool:
        """One colour channel?"""
        return self.levels_HWC.shape[2] == 1

    def refuse_transparency(self, suffix: str) -> None:
        """What a format of this suffix cannot hold is not dropped without a word."""
        if self.alpha_HW is not None and suffix.lower() not in TRANSPARENT:
            cure = "write .png, .tif, .webp or .avif, or lay it upon a colour by --background white"
            raise Refusal(f"is transparent, which {suffix} cannot hold", where=self.path, cure=cure)

    def metadata(self, size: tuple[int, int]) -> Metadata:
        """What an image of (height, width) made from this one says of the photograph; it is upright."""
        return read_metadata(self.path).fitted((self.height, self.width), size)

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """lr_BCHW, (1, 3, H, W) float32 in [0, 1]."""
        rgb_HWC = _unit_range(self.levels_HWC[top:bottom, left:right])
        return rgb_HWC.permute(2, 0, 1).expand(3, -1, -1).contiguous()[None]

    def alpha_rows(self, first: int, count: int, scale: int = SCALE) -> Tensor:
        """(count, sW) float32 rows of the enlarged transparency: bicubic, apart from the colours."""
        assert self.alpha_HW is not None
        top = max(0, first // scale - _CONTEXT)
        bottom = min(self.height, -(-(first + count) // scale) + _CONTEXT)
        part_11HW = _unit_range(self.alpha_HW[top:bottom])[None, None]
        large_HW = resize_bicubic(part_11HW, scale=scale)[0, 0]
        return large_HW[first - scale * top : first - scale * top + count]


def read_source(path: Path, background: Rgb | None = None) -> Source:
    """Read one file; whatever is wrong with it is a Refusal. With a `background`, nothing of it is transparent."""
    raster, icc = read_raster(path)
    levels_HWC, alpha_HW = raster.levels_HWC, raster.alpha_HW
    if background is not None and alpha_HW is not None:
        levels_HWC, alpha_HW = _laid_upon(background, levels_HWC, alpha_HW), None
    return Source(path, levels_HWC, alpha_HW, icc, file_sha256(path))


def _laid_upon(background: Rgb, levels_HWC: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    """Whole levels over a colour; a grey image stays grey over a grey.

    Before enlarging: what lies hidden below full transparency, often garbage, would else shine through at the edges.
    """
    top = float(np.iinfo(levels_HWC.dtype).max)
    colours = background[:1] if levels_HWC.shape[2] == 1 and len(set(background)) == 1 else background
    share_HW1 = (alpha_HW.astype(np.float64) / top)[..., None]
    mixed_HWC = share_HW1 * levels_HWC + (1 - share_HW1) * np.array(colours) * (top / 255)
    return mixed_HWC.round().astype(levels_HWC.dtype)


def _unit_range(levels: np.ndarray) -> Tensor:
    return torch.from_numpy(levels.astype(np.float32)) / float(np.iinfo(levels.dtype).max)
