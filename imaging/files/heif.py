"""AVIF and HEIC files -> opened by Pillow or pillow-heif, or a refusal that names what to install.

Both are boxes of the same kind; Pillow reads AVIF where it was built with it, HEIC takes the extra `heif`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import features

from imaging.files.deep import Raster
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import ImageFile

AVIF_CURE = "pip install --upgrade 'pillow>=11.3'"
HEIC_CURE = "pip install 'championship-sr[heif]', or convert it to PNG or JPEG"


def has_avif() -> bool:
    """Can this Pillow read and write AVIF?"""
    return "avif" in features.modules and features.check_module("avif")


def open_avif(path: Path, file: BinaryIO) -> ImageFile.ImageFile:
    """The headers; the pixels are decoded by `load`."""
    if not has_avif():
        raise Refusal("is an AVIF file, which this Pillow does not read", where=path, cure=AVIF_CURE)
    file.seek(0)
    return import_module("PIL.AvifImagePlugin").AvifImageFile(file)


def avif_depth(data: bytes) -> int:
    """Bits per channel: 8, 10 or 12, by the box that says how the picture is coded."""
    at = data.find(b"av1C") + 6
    flags = data[at] if 6 <= at < len(data) else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def open_heic(path: Path, file: BinaryIO) -> Any:
    """The one picture of a HEIC file, not decoded yet: `size`, `mode`, `info`."""
    try:
        package = import_module("pillow_heif")
    except ImportError:
        raise Refusal("is a HEIC file, which takes a further package", where=path, cure=HEIC_CURE) from None
    file.seek(0)
    container = package.open_heif(file, convert_hdr_to_8bit=False)
    if len(container) > 1:
        cure = "split it into files of one image each, by `heif-dec FILE out.png`"
        raise Refusal(f"holds {len(container)} images", where=path, cure=cure)
    return container[0]


def heic_raster(image: Any) -> Raster:
    """Its levels, upright: libheif turns them by the file's own boxes, and EXIF has no say in this format."""
    samples = np.asarray(image)
    samples_HWS = samples[..., None] if samples.ndim == 2 else samples
    if samples_HWS.dtype == np.uint16:  # the file's bits stand in the upper ones: ten would end at 65,472
        bits = int(image.info["bit_depth"])
        levels = (samples_HWS >> (16 - bits)).astype(np.float64)
        samples_HWS = np.rint(levels * (65535 / (2**bits - 1))).astype(np.uint16)
    if samples_HWS.shape[-1] in (2, 4):
        return Raster(samples_HWS[..., :-1], samples_HWS[..., -1])
    return Raster(samples_HWS, None)
