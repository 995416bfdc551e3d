"""An image file's pixels, depth, profile and transparency -> `Picture`. Axes: C colour, H height, W width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Depth = Literal[8, 16]

# Twice Pillow's own warning level: a 13,000 x 13,700 image, which takes 2.1 GB as float32 RGB.
MAX_PIXELS = 178_956_970


@dataclass(frozen=True)
class Picture:
    """What was in one image file, upright (EXIF orientation applied), colours not converted to another profile."""

    rgb_CHW: Tensor  # float32 in [0, 1], on the CPU, 3 channels also for grey files
    alpha_HW: Tensor | None  # float32 in [0, 1], straight (not premultiplied); None when every pixel is opaque by kind
    depth: Depth  # bits per channel in the file
    grey: bool  # the file has one colour channel: the three of rgb_CHW are equal
    icc: bytes | None  # the embedded colour profile, of the kind (grey or RGB) that the pixels are
    path: Path

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rgb_CHW.shape[-2], self.rgb_CHW.shape[-1]
