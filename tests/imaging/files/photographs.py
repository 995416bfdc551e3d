"""Photographs with EXIF and XMP, written by Pillow or byte by byte."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from tests.imaging.parts import levels, png_chunk

if TYPE_CHECKING:
    from pathlib import Path

HEIGHT, WIDTH = 20, 28  # as stored; orientation 6 turns them
DATE, MAKE, NOTE = "2024:05:06 07:08:09", "Lichtbild", b"NOTE" + bytes(range(200))
LATITUDE = (47.0, 30.0, 15.0)
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<r:Description r:about="" xmlns:t="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"
 xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 t:Orientation="6" exif:PixelXDimension="28" hdrgm:Version="1.0" GPano:FullPanoWidthPixels="40" xmp:Rating="5">
<exif:PixelYDimension>20</exif:PixelYDimension><xmp:Thumbnails><r:Alt><r:li>old</r:li></r:Alt></xmp:Thumbnails>
<dc:title><r:Alt><r:li xml:lang="x-default">Gr\u00fc\u00dfe &amp; mehr</r:li></r:Alt></dc:title>
</r:Description></r:RDF></x:xmpmeta>
<?xpacket end="w"?>""".encode()


def tags(orientation: int = 6) -> Image.Exif:
    """What a camera writes: image, photograph and place, sizes among them."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.DateTime] = MAKE, DATE
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.ImageWidth] = WIDTH
    exif.get_ifd(ExifTags.IFD.Exif).update(
        {
            ExifTags.Base.DateTimeOriginal: DATE,
            ExifTags.Base.ExposureTime: 1 / 125,
            ExifTags.Base.ExifImageWidth: WIDTH,
            ExifTags.Base.ExifImageHeight: HEIGHT,
            ExifTags.Base.SubjectLocation: (5, 6),
            ExifTags.Base.MakerNote: NOTE,
        }
    )
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: LATITUDE})
    return exif


def with_thumbnail(block: bytes) -> bytes:
    """The same block (big-endian, as Pillow writes it) with a second directory that leads to a small JPEG."""
    assert block[:2] == b"MM"
    (first,) = struct.unpack(">I", block[4:8])
    (count,) = struct.unpack(">H", block[first : first + 2])
    link = first + 2 + 12 * count
    data = bytearray(block + bytes(len(block) % 2))
    data[link : link + 4] = struct.pack(">I", len(data))
    thumbnail = b"\xff\xd8THUMBNAIL\xff\xd9"
    start = len(data) + 2 + 24 + 4
    data += struct.pack(">H", 2) + struct.pack(">HHII", 0x201, 4, 1, start)
    data += struct.pack(">HHII", 0x202, 4, 1, len(thumbnail)) + bytes(4) + thumbnail
    return bytes(data)


def save_photograph(path: Path, *, orientation: int = 6, exif: bytes | None = None, xmp: bytes | None = XMP) -> Path:
    """In the format that the suffix names."""
    block = with_thumbnail(tags(orientation).tobytes().removeprefix(b"Exif\0\0")) if exif is None else exif
    image = Image.fromarray(np.kron(levels(HEIGHT // 4, WIDTH // 4, 3), np.ones((4, 4, 1), np.uint8)))
    options: dict[str, object] = {"exif": b"Exif\0\0" + block, **({} if xmp is None else {"xmp": xmp})}
    if path.suffix in (".jpg", ".webp", ".avif"):
        image.save(path, quality=95, **options)
    elif path.suffix == ".tif":
        record = tags(orientation)
        if xmp is not None:
            record[700] = xmp
        image.save(path, exif=record.tobytes())
    else:
        image.save(path)
        data = path.read_bytes()
        after_header = 8 + 25
        added = png_chunk(b"eXIf", block)
        added += b"" if xmp is None else png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        path.write_bytes(data[:after_header] + added + data[after_header:])
    return path
