"""PNG and TIFF files of 16 bits per channel, and a TIFF's header -> whole levels without loss of depth.

Pillow cuts 16-bit RGB to 8 bits, so PNGs come through OpenCV; TIFFs through tifffile, or OpenCV where tifffile lacks
the compression (LZW). Axes: H height, W width, C colour channels (1 or 3), S samples (colours, then extras).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

import cv2
import numpy as np
import tifffile

from imaging.files.contradictions import bits_of, require_consistent_tiff
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

_MIN_IS_WHITE, _RGB = 0, 2
_READABLE = {0: 1, 1: 1, 2: 3}  # TIFF's photometric -> colours, at 16 bits: white-is-zero, black-is-zero, RGB
_READABLE_AT_8 = frozenset({0, 1, 2, 3, 5, 6})  # also palette, CMYK, YCbCr
_PREMULTIPLIED, _STRAIGHT = 1, 2
_PNG_GREY_TYPES = (0, 4)
_CONVERT = "convert it to an 8- or 16-bit RGB TIFF or PNG"


@dataclass(frozen=True)
class Raster:
    """Decoded whole levels, upright or not: uint8 or uint16, the same in both arrays."""

    levels_HWC: np.ndarray
    alpha_HW: np.ndarray | None


@dataclass(frozen=True)
class TiffHeader:
    """What decides how a TIFF is read."""

    height: int  # as stored, before `orientation`
    width: int
    bits: int
    photometric: int
    samples: int
    extra: int | None  # meaning of the first sample after the colours; None when there is none
    orientation: int
    icc: bytes | None

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) once it is turned upright."""
        return (self.width, self.height) if self.orientation in (5, 6, 7, 8) else (self.height, self.width)


def tiff_header(file: BinaryIO, *, where: Path) -> TiffHeader:
    """Read a TIFF's first directory; several pages, floats, truncation and rare kinds are refused."""
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = cast("tifffile.TiffPage", tiff.pages.first)  # only later pages may be frames, which have no tags
        others = [other for other in tiff.pages[1:] if not getattr(other, "is_reduced", False)]
        if others:
            raise Refusal(f"holds {1 + len(others)} pages", where=where, cure="split it into files of one image each")
        end = file.seek(0, 2)
        pieces = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        if not pieces or any(count == 0 or offset + count > end for offset, count in pieces):
            raise Refusal(
                "is a truncated TIFF: pixels lie beyond its end", where=where, cure="replace it with a whole copy"
            )
        require_consistent_tiff(page, where)
        colours = _READABLE.get(int(page.photometric), page.samplesperpixel)
        header = TiffHeader(
            height=page.imagelength,
            width=page.imagewidth,
            bits=bits_of(page),
            photometric=int(page.photometric),
            samples=page.samplesperpixel,
            extra=int(page.extrasamples[0]) if page.extrasamples and page.samplesperpixel > colours else None,
            orientation=int(tag.value) if (tag := page.tags.get(274)) and isinstance(tag.value, int) else 1,
            icc=tag.value if (tag := page.tags.get(34675)) and isinstance(tag.value, bytes) else None,
        )
        _check_kind(header, int(page.sampleformat), where)
        return header


def _check_kind(header: TiffHeader, sample_format: int, where: Path) -> None:
    if sample_format != 1:
        kind = {2: "signed", 3: "floating-point"}.get(sample_format, "unusual")
        raise Refusal(f"holds {kind} numbers, whose range is not known", where=where, cure=_CONVERT)
    if header.bits not in (1, 2, 4, 8, 16):
        raise Refusal(f"holds {header.bits or 'mixed'}-bit samples", where=where, cure=_CONVERT)
    if header.photometric not in (_READABLE if header.bits == 16 else _READABLE_AT_8):
        kind = tifffile.PHOTOMETRIC(header.photometric).name
        raise Refusal(f"is a {header.bits}-bit TIFF of the kind {kind}", where=where, cure=_CONVERT)


def tiff16(file: BinaryIO, header: TiffHeader, *, where: Path) -> Raster:
    """A 16-bit TIFF -> its levels, upright, alpha made straight."""
    samples_HWS = _samples(file, header, where)
    colours = _READABLE[header.photometric]
    if samples_HWS.dtype != np.uint16 or samples_HWS.shape[-1] != header.samples or header.samples < colours:
        raise Refusal("is a 16-bit TIFF whose pixels do not match its header", where=where, cure=_CONVERT)
    levels_HWC = samples_HWS[..., :colours]
    if header.photometric == _MIN_IS_WHITE:
        levels_HWC = 65535 - levels_HWC
    if header.extra not in (_PREMULTIPLIED, _STRAIGHT):
        return Raster(levels_HWC, None)
    alpha_HW = samples_HWS[..., colours]
    if header.extra == _PREMULTIPLIED:
        share = np.maximum(alpha_HW, 1)[..., None] / 65535
        levels_HWC = np.rint(np.minimum(levels_HWC / share, 65535)).astype(np.uint16)
    return Raster(levels_HWC, alpha_HW)


def _samples(file: BinaryIO, header: TiffHeader, where: Path) -> np.ndarray:
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        try:
            planes = page.asarray().reshape(page.shaped)  # (separate samples, depth, H, W, samples)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
        else:
            samples_HWS = np.moveaxis(planes[:, 0, ..., 0], 0, -1) if planes.shape[0] > 1 else planes[0, 0]
            return upright(samples_HWS, header.orientation)
    if header.photometric == _MIN_IS_WHITE or header.samples == 2:
        raise Refusal("uses a compression that cannot be read for its kind", where=where, cure=_CONVERT)
    return _opencv(file, where)  # applies the orientation itself


def png16(file: BinaryIO, colour_type: int, key: int | tuple[int, ...] | None, *, where: Path) -> Raster:
    """A 16-bit PNG -> its levels as stored; `key` is the colour that its tRNS chunk declares transparent."""
    samples_HWS = _opencv(file, where)
    if samples_HWS.dtype != np.uint16:
        raise Refusal("is a 16-bit PNG that did not decode as one", where=where, cure="replace it with an intact copy")
    levels_HWC = samples_HWS[..., :1] if colour_type in _PNG_GREY_TYPES else samples_HWS[..., :3]
    if key is not None:
        return Raster(levels_HWC, keyed_alpha(levels_HWC, key))
    return Raster(levels_HWC, samples_HWS[..., 3] if samples_HWS.shape[-1] == 4 else None)


def keyed_alpha(levels_HWC: np.ndarray, key: int | tuple[int, ...]) -> np.ndarray:
    """Transparent where a pixel has exactly the key colour, opaque elsewhere."""
    opaque = np.iinfo(levels_HWC.dtype).max
    differs_HW = (levels_HWC != np.asarray(key)).any(axis=-1)
    return np.where(differs_HW, opaque, 0).astype(levels_HWC.dtype)


def _opencv(file: BinaryIO, where: Path) -> np.ndarray:
    file.seek(0)
    samples = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise Refusal("cannot be decoded at 16 bits", where=where, cure=_CONVERT)
    if samples.ndim == 2:
        return samples[..., None]
    return samples[..., [2, 1, 0, *range(3, samples.shape[-1])]]  # OpenCV's order is BGR


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (1 to 8) on (H,W) or (H,W,C); other values mean that nothing was recorded."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
