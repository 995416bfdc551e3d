"""Nothing -> sample photographs as PNG files: those that scikit-image carries in its wheel, all free to use.

astronaut: Eileen Collins, NASA, public domain. chelsea: Stefan van der Walt, CC0. coffee: Rachel Michetti, CC0.
rocket: SpaceX, CC0.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import torch

from imaging.files import write_picture
from imaging.refusal import Refusal
from imaging.resize import crop_to_multiple

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def write_samples(folder: Path) -> list[Path]:
    """Write each sample, its sides cropped to a multiple of 4, and return the files."""
    try:
        photographs = import_module("skimage.data")
    except ImportError:
        cure = "pip install 'championship-sr[demo]'"
        raise Refusal("the samples come with scikit-image, which is not installed", where=folder, cure=cure) from None
    written = []
    for name in NAMES:
        rgb_HWC = np.asarray(getattr(photographs, name)())
        rgb_BCHW = torch.from_numpy(rgb_HWC.copy()).permute(2, 0, 1)[None].float() / 255
        path = folder / f"{name}.png"
        write_picture(path, crop_to_multiple(rgb_BCHW))
        written.append(path)
    return written
