"""An image file's own statements about its size -> one size, or a refusal where they contradict each other.

Readers differ in which of two statements they believe: the size that limits and forecasts are made from must be the one
that the decoder takes memory for. Checked before any pixel is decoded.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from typing import TYPE_CHECKING, BinaryIO, cast

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.ImageFile import ImageFile
    from tifffile import TiffPage

_INTACT = "replace it with an intact copy, or convert it to a plain PNG"
_UNCOMPRESSED, _YCBCR = 1, 6
_ONE_NUMBER = {
    256: "ImageWidth",
    257: "ImageLength",
    277: "SamplesPerPixel",
    278: "RowsPerStrip",
    284: "PlanarConfiguration",
    322: "TileWidth",
    323: "TileLength",
}
_DEPTHS = {32997: "ImageDepth", 32998: "TileDepth"}
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEFLATE = 1032  # bytes that zlib can make of one, at the most
_START_OF_SCAN, _NO_FRAMES, _ARITHMETIC = 0xDA, (0xC4, 0xC8, 0xCC), 0xC9
_LARGEST_TILE = 1 << 24  # pixels: a decoder takes a whole tile's memory even where the image is smaller


def contradicts(what: str, where: Path) -> Refusal:
    """The refusal of a file that says two things."""
    return Refusal(f"contradicts itself: {what}", where=where, cure=_INTACT)


def require_size(found: tuple[int, int], claimed: tuple[int, int], where: Path) -> None:
    """What is decoded, (height, width), must be what the header says, by which limits were checked."""
    if found != claimed:
        what = f"its header says {claimed[1]}x{claimed[0]} pixels, its content {found[1]}x{found[0]}"
        raise contradicts(what, where)


def require_consistent_tiff(page: TiffPage, where: Path) -> None:
    """A TIFF's tags: each there once, one plain number each, and as many strips or tiles as its size takes."""
    for code, count in Counter(tag.code for tag in page.tags).items():
        if count > 1:
            raise contradicts(f"its tag {_ONE_NUMBER.get(code, code)} is there {count} times", where)
    for code, name in {**_ONE_NUMBER, **_DEPTHS}.items():
        tag = page.tags.get(code)
        if tag is not None and (not isinstance(tag.value, int) or tag.value < 1):
            raise contradicts(f"its tag {name} is not one positive number", where)
        if tag is not None and code in _DEPTHS and tag.value != 1:
            raise Refusal(
                f"has a depth of {tag.value} layers", where=where, cure="split it into files of one image each"
            )
    if page.is_tiled and page.tilewidth * page.tilelength > _LARGEST_TILE:
        what = f"its tiles are {page.tilewidth}x{page.tilelength} for {page.imagewidth}x{page.imagelength} pixels"
        raise contradicts(what, where)
    needed = math.prod(page.chunked)
    pieces = min(len(page.dataoffsets), len(page.databytecounts))
    if pieces != needed:
        raise contradicts(f"its size takes {needed} strips or tiles, it lists {pieces}", where)
    _require_enough_bytes(page, where)


def bits_of(page: TiffPage) -> int:
    """Bits per sample; zero where the samples differ, whatever tifffile's types say."""
    bits = cast("int | tuple[int, ...]", page.bitspersample)
    return bits if isinstance(bits, int) else 0


def _require_enough_bytes(page: TiffPage, where: Path) -> None:
    """Without compression the bytes are known: fewer would be filled up or read from what follows."""
    if int(page.compression) != _UNCOMPRESSED or int(page.photometric) == _YCBCR:  # that may be subsampled
        return
    bits = bits_of(page)
    together = page.samplesperpixel if int(page.planarconfig) == 1 else 1
    rows = page.imagelength * (page.samplesperpixel // together)
    needed, held = rows * math.ceil(page.imagewidth * together * bits / 8), sum(page.databytecounts)
    if held < needed:
        raise contradicts(f"its pixels take {needed} bytes, its strips hold {held}", where)


def require_enough_content(kind: str, file: BinaryIO, image: ImageFile, where: Path) -> None:
    """A PNG, JPEG or BMP whose file is shorter than any file of its size can be: decoders would fill up the rest."""
    end, (width, height) = file.seek(0, 2), image.size
    needed = 0
    if kind == "JPEG":
        frames = _jpeg_frames(file)
        if len(frames) > 1:
            raise contradicts(f"it has {len(frames)} frame headers", where)
        if frames and frames[0] < _ARITHMETIC:
            needed = math.ceil(height / 8) * math.ceil(width / 8) // 8  # a bit for each block of 8x8, at the least
    elif kind == "PNG":
        file.seek(24)
        bits, colour_type = file.read(2)
        row = math.ceil(width * bits * _PNG_SAMPLES.get(colour_type, 1) / 8)
        needed = height * row // _DEFLATE
    elif kind == "BMP" and image.tile and image.tile[0].codec_name == "raw":
        arguments = image.tile[0].args
        stride = arguments[1] if isinstance(arguments, tuple) and isinstance(arguments[1], int) else 0
        needed = image.tile[0].offset + height * stride
    if end < needed:
        raise contradicts(f"{width}x{height} pixels take at least {needed} bytes, it has {end}", where)


def _jpeg_frames(file: BinaryIO) -> list[int]:
    """The kinds (0xC0 to 0xCF) of the frame headers before the first scan."""
    file.seek(2)
    found: list[int] = []
    while len(head := file.read(4)) == 4:
        mark, kind, length = struct.unpack(">BBH", head)
        if mark != 0xFF or kind == _START_OF_SCAN or length < 2:  # what is no marker is the decoder's to judge
            break
        if 0xC0 <= kind <= 0xCF and kind not in _NO_FRAMES:
            found.append(kind)
        file.seek(length - 2, 1)
    return found


def webp_size(file: BinaryIO, where: Path) -> tuple[int, int]:
    """(height, width) of a WebP file, by its canvas and its picture alike; Pillow takes the canvas's memory to tell."""
    end = file.seek(0, 2)
    file.seek(12)
    canvas: tuple[int, int] | None = None
    while True:
        head = file.read(8)
        if len(head) < 8:
            break
        kind, length = struct.unpack("<4sI", head)
        start = file.tell()
        data = file.read(min(length, 16))
        if kind == b"VP8X" and len(data) >= 10:
            if canvas is not None:
                raise contradicts("it has two canvases", where)
            canvas = 1 + int.from_bytes(data[7:10], "little"), 1 + int.from_bytes(data[4:7], "little")
        elif kind == b"ANMF" and canvas is not None:  # a frame lies somewhere on the canvas: libwebp checks that
            return canvas
        elif kind in (b"VP8 ", b"VP8L"):
            size = _webp_picture(kind, data)
            if size is None:
                break
            require_size(size, canvas or size, where)
            return size
        if start + length > end:
            break
        file.seek(start + length + length % 2)
    raise Refusal(
        "is a damaged or truncated WebP: it holds no picture", where=where, cure="replace it with a whole copy"
    )


def _webp_picture(kind: bytes, data: bytes) -> tuple[int, int] | None:
    """(height, width) from the first bytes of lossy or lossless data."""
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a" and len(data) >= 10:
        width, height = struct.unpack("<HH", data[6:10])
        return height & 0x3FFF, width & 0x3FFF  # the upper two bits ask for scaling, which nobody does
    if kind == b"VP8L" and data[:1] == b"\x2f" and len(data) >= 5:
        packed = int.from_bytes(data[1:5], "little")
        return 1 + (packed >> 14 & 0x3FFF), 1 + (packed & 0x3FFF)
    return None
