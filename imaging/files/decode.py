"""An image file -> `Picture`: rgb_CHW float32 in [0, 1], upright, with alpha, depth and profile, or one refusal.

Pillow checks every file (it notices damage) and decodes all 8-bit ones; it would reduce 16-bit RGB to 8 bits without a
warning, so those go through deep.py. Axes: C colour, H height, W width, S samples (colours, then alpha).
"""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from imaging.files.contradictions import require_size
from imaging.files.deep import Raster, TiffHeader, keyed_alpha, png16, tiff16, upright
from imaging.files.header import KINDS, Header, detect_format, open_header, read_bytes, refusing
from imaging.files.heif import avif_depth, heic_raster
from imaging.files.picture import MAX_PIXELS, Depth, Picture
from imaging.files.png import chunks
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

log = logging.getLogger(__name__)

# What Pillow's other modes become; a palette with transparency becomes RGBA.
_TARGET_MODES = {
    "P": "RGB",
    "PA": "RGBA",
    "LA": "LA",
    "RGBA": "RGBA",
    "RGBX": "RGB",
    "RGBa": "RGBA",
    "La": "LA",
    "YCbCr": "RGB",
}


def read_picture(path: Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read one image file; whatever is wrong with it is a Refusal that names the file, the reason and the cure."""
    raster, icc = read_raster(path, max_pixels=max_pixels)
    return _picture(path, raster, icc)


def read_raster(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[Raster, bytes | None]:
    """The file's whole levels, upright, and its profile: a quarter of the memory of a Picture, for huge images."""
    file = io.BytesIO(read_bytes(path))
    kind = detect_format(path, file.read(32))
    with refusing(path, kind):
        header = open_header(path, kind, file, max_pixels)
        raster, icc = _decode(path, header, file)
        height, width = raster.levels_HWC.shape[:2]
        require_size((height, width), header.size, path)
    return raster, _usable_profile(path, icc, raster.levels_HWC.shape[-1] == 1)


def read_rgb(path: Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read one image file as rgb_BCHW, (1,3,H,W) float32 in [0, 1]; transparency is left out."""
    return read_picture(path, max_pixels=max_pixels).rgb_CHW[None]


def _decode(path: Path, header: Header, file: BinaryIO) -> tuple[Raster, bytes | None]:
    """Pixels upright, and the profile that describes them."""
    if header.tiff is not None:
        return _decode_tiff(path, header.tiff, file)
    if header.heic is not None:
        return heic_raster(header.heic), header.heic.info.get("icc_profile")
    assert header.image is not None
    image, bits, colour_type = header.image, 8, None
    if header.kind == "AVIF" and (depth := avif_depth(_rewound(file).read())) > 8:
        log.warning("%s: its %d bits are read as 8, which is all that Pillow gives", path, depth)
    if header.kind == "PNG":
        ihdr = next(data for kind, data in list(chunks(file, where=path, pixels=True)) if kind == b"IHDR")
        bits, colour_type = ihdr[8], ihdr[9]
        image = PngImageFile(_rewound(file))
    image.load()  # for 16-bit PNGs too: Pillow notices missing pixels, OpenCV fills them with black
    icc = image.info.get("icc_profile")
    if bits == 16:
        assert colour_type is not None
        raster = png16(file, colour_type, image.info.get("transparency"), where=path)
    else:
        raster, icc = _decode_8bit(path, image, icc, bits)
    return _upright_raster(raster, header.orientation), icc


def _decode_tiff(path: Path, header: TiffHeader, file: BinaryIO) -> tuple[Raster, bytes | None]:
    if header.bits == 16:
        return tiff16(file, header, where=path), header.icc
    image = TiffImageFile(_rewound(file))
    # Pillow reads the tags itself, and turns the size by an orientation of its own reading.
    require_size((image.height, image.width), header.upright_size, path)
    image.load()  # turns the image upright by itself
    return _decode_8bit(path, image, header.icc, 8)


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _upright_raster(raster: Raster, orientation: int) -> Raster:
    alpha_HW = None if raster.alpha_HW is None else upright(raster.alpha_HW, orientation)
    return Raster(upright(raster.levels_HWC, orientation), alpha_HW)


def _decode_8bit(path: Path, image: Image.Image, icc: bytes | None, bits: int) -> tuple[Raster, bytes | None]:
    """Any of Pillow's 8-bit modes -> grey or RGB levels with straight alpha."""
    mode, key = image.mode, image.info.get("transparency")
    if mode == "CMYK":
        return Raster(_rgb_of_cmyk(path, image, icc), None), None
    if mode in ("1", "L", "RGB"):
        levels_HWC = np.asarray(image.convert("L") if mode == "1" else image).reshape(image.height, image.width, -1)
        if key is None:
            return Raster(levels_HWC, None), icc
        # The key is given in the file's own levels, Pillow has spread 2- and 4-bit greys over 0..255.
        spread = 255 // ((1 << bits) - 1) if mode == "L" else 1
        return Raster(levels_HWC, keyed_alpha(levels_HWC, key * spread if mode == "L" else key)), icc
    target = _TARGET_MODES.get(mode)
    if target is None:
        raise Refusal(f"holds pixels of the kind {mode}", where=path, cure=f"convert it to an RGB {KINDS} file")
    if mode == "P" and key is not None:
        target = "RGBA"
    samples_HWS = np.asarray(image if target == mode else image.convert(target))
    if target in ("LA", "RGBA"):
        return Raster(samples_HWS[..., :-1], samples_HWS[..., -1]), icc
    return Raster(samples_HWS, None), icc


def _rgb_of_cmyk(path: Path, image: Image.Image, icc: bytes | None) -> np.ndarray:
    """Inks -> sRGB: by the embedded profile, or by the plain formula where none works."""
    if icc is not None:
        try:
            inks, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, inks, srgb, outputMode="RGB")
            assert converted is not None
            return np.asarray(converted)
        except (ImageCms.PyCMSError, OSError) as error:
            log.warning("%s: its CMYK profile does not work (%s); converted without it", path, error)
    return np.asarray(image.convert("RGB"))


def _picture(path: Path, raster: Raster, icc: bytes | None) -> Picture:
    grey = raster.levels_HWC.shape[-1] == 1
    depth: Depth = 16 if raster.levels_HWC.dtype == np.uint16 else 8
    rgb_CHW = _unit_range(raster.levels_HWC).permute(2, 0, 1).expand(3, -1, -1).contiguous()
    alpha_HW = None if raster.alpha_HW is None else _unit_range(raster.alpha_HW)
    return Picture(rgb_CHW, alpha_HW, depth, grey, icc, path)


def _unit_range(levels: np.ndarray) -> Tensor:
    """Whole levels -> float32 in [0, 1]."""
    return torch.from_numpy(levels.astype(np.float32)) / float(np.iinfo(levels.dtype).max)


def _usable_profile(path: Path, icc: bytes | None, grey: bool) -> bytes | None:
    if not icc:
        return None
    wrong_space = icc[16:20] not in ((b"GRAY", b"RGB ") if grey else (b"RGB ",))
    if len(icc) < 128 or icc[36:40] != b"acsp" or wrong_space:
        log.warning("%s: its colour profile does not describe its pixels and is left out", path)
        return None
    return icc
